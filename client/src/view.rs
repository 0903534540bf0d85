//! What a client sees; pure.

use serde::Deserialize;
use std::collections::BTreeMap;

/// A friend who is near.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Friend {
    /// Who.
    pub id: String,
    /// Degrees.
    pub lat: f64,
    /// Degrees.
    pub lon: f64,
    /// Metres.
    pub distance_m: f64,
    /// Time of the friend's last report.
    pub updated_at_ms: i64,
    /// The friend is hidden then, even if nothing more is heard.
    pub visible_until_ms: i64,
}

/// A friend who is no longer seen.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Left {
    /// Who.
    pub id: String,
    /// Why, as a stable word.
    pub reason: String,
}

/// Friends by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View(pub BTreeMap<String, Friend>);

impl View {
    /// All that is seen.
    pub fn replace(&mut self, friends: Vec<Friend>) {
        self.0 = friends.into_iter().map(|friend| (friend.id.clone(), friend)).collect();
    }

    /// What is new. Returns the times of the reports that have arrived with it: a new distance alone, because the viewer moved, is
    /// no arrival, nor is a friend who comes into view.
    pub fn update(&mut self, moved: Vec<Friend>, left: &[Left]) -> Vec<i64> {
        let mut arrived_ms = Vec::new();
        for friend in moved {
            let (updated_at_ms, id) = (friend.updated_at_ms, friend.id.clone());
            let before = self.0.insert(id, friend);
            arrived_ms.extend(before.filter(|before| before.updated_at_ms != updated_at_ms).map(|_| updated_at_ms));
        }
        for Left { id, .. } in left {
            self.0.remove(id);
        }
        arrived_ms
    }

    /// Hides whose time is over.
    pub fn hide_expired(&mut self, server_now_ms: i64) {
        self.0.retain(|_, friend| friend.visible_until_ms > server_now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn friend(id: &str, updated_at_ms: i64) -> Friend {
        let visible_until_ms = updated_at_ms + 10;
        Friend { id: id.to_owned(), lat: 1.0, lon: 2.0, distance_m: 3.0, updated_at_ms, visible_until_ms }
    }

    fn ids(view: &View) -> Vec<&str> {
        view.0.keys().map(String::as_str).collect()
    }

    #[test]
    fn it_is_what_the_frames_say() {
        let mut view = View::default();
        view.replace(vec![friend("1", 1), friend("2", 1)]);
        let arrived = view.update(vec![friend("1", 5), friend("2", 1), friend("3", 5)], &[]);
        assert_eq!((arrived, ids(&view)), (vec![5], vec!["1", "2", "3"]), "one report arrived");
        let left = Left { id: "1".to_owned(), reason: "distance".to_owned() };
        assert!(view.update(vec![], &[left]).is_empty());
        view.hide_expired(11);
        assert_eq!(ids(&view), ["3"], "the time of 2 is over");
        view.replace(vec![friend("7", 1)]);
        assert_eq!(ids(&view), ["7"]);
    }
}
