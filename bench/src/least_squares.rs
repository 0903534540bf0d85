//! Costs from loads that each have some of several: a sum of costs for each load, with errors in proportion.

use anyhow::ensure;

/// Steps of descent, far more than so few costs need.
const STEPS: usize = 200_000;

/// The costs, none below zero, for which the sum of the squares of relative errors is the least: a row has how much of each cost is in a load,
/// and what the load took. One cost after the other is set to its best (coordinate descent).
///
/// # Errors
/// If a load took nothing, or two costs cannot be told apart.
pub fn fit<const COSTS: usize>(loads: &[([f64; COSTS], f64)]) -> anyhow::Result<[f64; COSTS]> {
    ensure!(loads.iter().all(|(_, took)| *took > 0.0), "a load took nothing: {loads:?}");
    let rows: Vec<[f64; COSTS]> = loads.iter().map(|(parts, took)| parts.map(|part| part / took)).collect();
    let product = |a: usize, b: usize| rows.iter().map(|row| row[a] * row[b]).sum::<f64>();
    let products: [[f64; COSTS]; COSTS] = std::array::from_fn(|a| std::array::from_fn(|b| product(a, b)));
    for a in 0..COSTS {
        ensure!(products[a][a] > 0.0, "no load has any of cost {a}");
        for b in 0..a {
            let cosine = products[a][b] / (products[a][a] * products[b][b]).sqrt();
            ensure!(cosine < 1.0 - 1e-9, "costs {b} and {a} are in the same proportion in all loads");
        }
    }
    let whole: [f64; COSTS] = std::array::from_fn(|cost| rows.iter().map(|row| row[cost]).sum());
    let mut costs = [0.0; COSTS];
    for step in 0..STEPS {
        let cost = step % COSTS;
        let of_others = |other: usize| if other == cost { 0.0 } else { products[cost][other] * costs[other] };
        let others: f64 = (0..COSTS).map(of_others).sum();
        costs[cost] = ((whole[cost] - others) / products[cost][cost]).max(0.0);
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_sums_give_the_costs() {
        let loads = [([1.0, 0.0, 3.0], 2.5), ([1.0, 10.0, 3.0], 22.5), ([1.0, 5.0, 30.0], 26.0)];
        for (found, expected) in fit(&loads).expect("a fit").into_iter().zip([1.0, 2.0, 0.5]) {
            assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
        }
    }

    #[test]
    fn no_cost_is_below_zero_and_errors_are_relative() {
        // An exact sum would take 1 and -0.5.
        let [first, second] = fit(&[([1.0, 0.0], 1.0), ([1.0, 1.0], 0.5)]).expect("a fit");
        assert!((first - 0.6).abs() < 1e-9 && second.abs() < 1e-9, "{first}, {second}");
        let [cost] = fit(&[([1.0], 1.0), ([100.0], 200.0)]).expect("a fit");
        assert!((cost - 1.2).abs() < 1e-9, "{cost}: the large load would make it 2");
    }

    #[test]
    fn what_cannot_be_told_is_not_told() {
        fit(&[([1.0, 2.0], 1.0), ([3.0, 6.0], 2.0)]).expect_err("the same proportion");
        fit(&[([1.0, 0.0], 1.0), ([3.0, 0.0], 2.0)]).expect_err("none of the second");
        fit(&[([1.0], 0.0)]).expect_err("it took nothing");
    }
}
