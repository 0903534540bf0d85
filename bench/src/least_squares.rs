//! Costs from loads that each have some of several: a sum of costs for each load, with errors in proportion.

/// Steps of descent; a few hundred are enough for so few costs.
const STEPS: usize = 200_000;

/// The costs, none below zero, for which the sum of the squares of relative errors is the least: a row has how much of each cost is in a load,
/// and what the load took. One cost after the other is set to its best (coordinate descent), which finds the least because there is only one.
pub fn fit<const COSTS: usize>(loads: &[([f64; COSTS], f64)]) -> [f64; COSTS] {
    let rows: Vec<[f64; COSTS]> = loads.iter().map(|(parts, took)| parts.map(|part| part / took)).collect();
    let product = |a: usize, b: usize| rows.iter().map(|row| row[a] * row[b]).sum::<f64>();
    let products: [[f64; COSTS]; COSTS] = std::array::from_fn(|a| std::array::from_fn(|b| product(a, b)));
    let whole: [f64; COSTS] = std::array::from_fn(|cost| rows.iter().map(|row| row[cost]).sum());
    let mut costs = [0.0; COSTS];
    for step in 0..STEPS {
        let cost = step % COSTS;
        let others: f64 =
            (0..COSTS).filter(|other| *other != cost).map(|other| products[cost][other] * costs[other]).sum();
        if products[cost][cost] > 0.0 {
            costs[cost] = ((whole[cost] - others) / products[cost][cost]).max(0.0);
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_sums_give_the_costs() {
        let loads = [([1.0, 0.0, 3.0], 2.5), ([1.0, 10.0, 3.0], 22.5), ([1.0, 5.0, 30.0], 26.0)];
        for (found, expected) in fit(&loads).into_iter().zip([1.0, 2.0, 0.5]) {
            assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
        }
    }

    #[test]
    fn no_cost_is_below_zero_and_errors_are_relative() {
        // An exact sum would take 1 and -0.5.
        let [first, second] = fit(&[([1.0, 0.0], 1.0), ([1.0, 1.0], 0.5)]);
        assert!((first - 0.6).abs() < 1e-9 && second.abs() < 1e-9, "{first}, {second}");
        let [cost] = fit(&[([1.0], 1.0), ([100.0], 200.0)]);
        assert!((cost - 1.2).abs() < 1e-9, "{cost}: the large load would make it 2");
    }
}
