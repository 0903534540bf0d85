//! The codes that a client may meet when what it sends is at fault: those of `schemas/openapi.yaml` and `schemas/asyncapi.yaml`.

use nearby_service::problem::Problem;

const CODES: [&str; 11] = [
    "bad_json",
    "not_finite",
    "unknown_type",
    "missing",
    "wrong_type",
    "out_of_range",
    "in_future",
    "too_old",
    "unknown_precision",
    "bad_id",
    "too_many",
];

/// It is one that programs may depend on.
pub fn assert_stable(code: &str) {
    assert!(CODES.contains(&code), "{code} is not documented");
}

/// It is 400, says why, and names the items at fault, if it is about items.
pub fn assert_refusal(problem: &Problem) {
    assert_eq!(problem.status.as_u16(), 400, "{problem:?}");
    assert!(!problem.detail.is_empty(), "{problem:?}");
    assert_stable(problem.code);
    problem.errors.iter().for_each(|item| assert_stable(item.code));
    assert!(problem.errors.first().is_none_or(|first| first.code == problem.code), "the first is the problem's");
}
