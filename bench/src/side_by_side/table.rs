//! What a gateway of the textbook design holds: its viewers, their friends, and where all of these were last. Pure.

use super::truth::{Count, RADIUS_M};
use crate::workload::arrays::Bounds;
use crate::workload::user_id;
use nearby_schemas::Place;
use nearby_schemas::nearness::{distance_dm, distance_m};
use std::collections::HashMap;

const NO_NUMBER: u32 = u32::MAX;

/// The viewers of one gateway. Users are numbered as they come.
#[derive(Default)]
pub struct Table {
    numbers: HashMap<i64, u32>,
    places: Vec<Place>,
    /// By friend: who of the gateway's viewers sees this one.
    viewers: Vec<Vec<u32>>,
    /// By viewer: whom the viewer sees; nobody, if the viewer is on another gateway.
    friends: Vec<Vec<u32>>,
}

/// On which gateway a user is.
pub fn gateway_of(user: u32, gateways: usize) -> usize {
    user as usize / 7 % gateways
}

impl Table {
    /// That of this gateway of so many, with everybody at these places.
    pub fn new(places: &[Place], friends: &[Vec<u32>], gateway: usize, gateways: usize) -> Table {
        let (mut table, mut numbers) = (Table::default(), vec![NO_NUMBER; places.len()]);
        for (viewer, list) in (0..).zip(friends).filter(|(user, _)| gateway_of(*user, gateways) == gateway) {
            let own = table.number(&mut numbers[viewer as usize], viewer, places);
            for friend in list {
                let friend = table.number(&mut numbers[*friend as usize], *friend, places);
                table.viewers[friend as usize].push(own);
                table.friends[own as usize].push(friend);
            }
        }
        table
    }

    /// What it has been given, or the next.
    fn number(&mut self, number: &mut u32, user: u32, places: &[Place]) -> u32 {
        if *number == NO_NUMBER {
            *number = u32::try_from(self.places.len()).expect("fewer than 2^32 users");
            self.numbers.insert(user_id(user).0, *number);
            self.places.push(places[user as usize]);
            self.viewers.push(Vec::new());
            self.friends.push(Vec::new());
        }
        *number
    }

    /// Whom it has to hear: its viewers and their friends.
    pub fn users(&self) -> impl Iterator<Item = i64> + '_ {
        self.numbers.keys().copied()
    }

    /// Hears where a user is now: tells those who see the user, and the user if that is a viewer of its own.
    pub fn hear(&mut self, user: i64, new: Place) -> Count {
        let mut count = Count::default();
        let Some(number) = self.numbers.get(&user).map(|number| *number as usize) else { return count };
        let old = std::mem::replace(&mut self.places[number], new);
        // Who is neither near now nor was before is told nothing.
        let cheap = Bounds::around(new, RADIUS_M + distance_m(old, new));
        for (others, are_viewers) in [(&self.viewers[number], true), (&self.friends[number], false)] {
            for other in others {
                let place = self.places[*other as usize];
                if !cheap.holds(place) {
                    continue;
                }
                let (was_near, is_near) = (distance_m(old, place) <= RADIUS_M, distance_m(new, place) <= RADIUS_M);
                if is_near && (are_viewers || !was_near) {
                    count.show(distance_dm(new, place));
                }
                count.left += u64::from(was_near && !is_near);
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::super::truth::Truth;
    use super::*;
    use crate::workload::World;
    use std::sync::Arc;

    #[test]
    fn gateways_tell_together_what_brute_force_finds() {
        let mut world = World::new(200, 4);
        let friends = Arc::new(world.friendships(20));
        let mut truth = Truth::new(world.places.clone(), Arc::clone(&friends));
        let mut tables: Vec<Table> = (0..3).map(|gateway| Table::new(&world.places, &friends, gateway, 3)).collect();
        let (mut told, mut expected) = (Count::default(), Count::default());
        for _ in 0..5 {
            let moves = world.round();
            expected += truth.count(&moves);
            for (user, place) in moves {
                tables.iter_mut().for_each(|table| told += table.hear(user_id(user).0, place));
            }
        }
        assert_eq!(told, expected);
        assert!(told.left > 0, "nobody left: no test");
    }
}
