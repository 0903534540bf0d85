//! What every peer is given: the same people, the same friends, the same moves in the same order. Of a recording, the people and taxis
//! that report; time is left out, since each pace has its own.

use super::truth::{Count, Truth};
use crate::workload::{Move, World};
use anyhow::Context;
use nearby_e2e::programs::root;
use nearby_recorded::taxis::Friendships;
use nearby_recorded::{Recorded, checkins, taxis};
use nearby_schemas::{Place, UserId};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

/// As `nearby simulate --taxis` has them if it is told nothing else: so its taxis have the same friends.
const FIRST_TAXI: UserId = UserId(2);
const TAXI_SEED: u64 = 1;

/// Whose moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Of the engine's benchmark: people around centres
    W,
    /// Recorded check-ins in New York, and who is whose friend
    Gowalla,
    /// A recorded day of taxis in San Francisco; friends are drawn
    Taxis,
    /// W with very many users and friends: the highest rate that holds
    Scale,
}

/// How many there are, and where the recordings lie.
#[derive(Clone, Debug, clap::Args)]
pub struct Input {
    /// Users of W, all of them connected
    #[arg(long, default_value_t = 20_000)]
    pub users: u32,
    /// Friends of each in W; of each taxi, on average
    #[arg(long, default_value_t = 40)]
    pub friends: u32,
    /// Folder of the recorded check-ins; the taxis' is beside it [default: ../shared/data/gowalla-nyc]
    #[arg(long, env = "RECORDED", value_name = "FOLDER")]
    pub recorded: Option<PathBuf>,
}

/// The people, and what they do next.
pub struct Loads {
    pub workload: Workload,
    pub input: Input,
    /// By user, in both directions.
    pub friends: Arc<Vec<Vec<u32>>>,
    /// Where everybody has reported before the first move.
    pub places: Vec<Place>,
    source: Source,
    truth: Truth,
}

enum Source {
    /// And what is left of its last round.
    Invented(Box<World>, VecDeque<Move>),
    /// Its moves from the beginning, the one that is next, and which run that is.
    Recorded { moves: Arc<Vec<Move>>, next: usize, run: usize },
}

impl Workload {
    pub fn name(self) -> &'static str {
        match self {
            Workload::W => "w",
            Workload::Gowalla => "gowalla",
            Workload::Taxis => "taxis",
            Workload::Scale => "scale",
        }
    }
}

impl Input {
    /// For another process that needs the same.
    pub fn arguments(&self, workload: Workload) -> Vec<String> {
        let (users, friends) = (self.users.to_string(), self.friends.to_string());
        let numbers = ["--workload", workload.name(), "--users", &users, "--friends", &friends].map(str::to_owned);
        let folder = ["--recorded".to_owned(), self.folder().to_string_lossy().into_owned()];
        numbers.into_iter().chain(folder).collect()
    }

    fn folder(&self) -> PathBuf {
        self.recorded.clone().unwrap_or_else(|| root().join("../shared/data/gowalla-nyc"))
    }
}

impl Loads {
    /// A workload from its beginning.
    ///
    /// # Errors
    /// Its recording cannot be read.
    pub fn new(workload: Workload, input: &Input) -> anyhow::Result<Loads> {
        let folder = input.folder();
        match workload {
            Workload::W | Workload::Scale => {
                let mut world = World::new(input.users, crate::pipeline::CENTRES);
                let friends = Arc::new(world.friendships(input.friends));
                let source = Source::invented(&world.places);
                Ok(Loads::of(workload, input, friends, world.places, source))
            }
            Workload::Gowalla => {
                let (people, friends) = (folder.join("checkins.tsv.gz"), folder.join("friends.tsv.gz"));
                Loads::recorded(workload, input, &checkins::load(&people, Some(&friends))?)
            }
            Workload::Taxis => {
                let file = folder.with_file_name("cabspotting-sf").join("cabs.txt.gz");
                let friendships = Friendships { mean: input.friends, seed: TAXI_SEED };
                Loads::recorded(workload, input, &taxis::load(&file, FIRST_TAXI, friendships)?)
            }
        }
    }

    /// Who reports is numbered, in the order of ids; who never does is nobody's friend. Everybody begins at the first place.
    fn recorded(workload: Workload, input: &Input, recorded: &Recorded) -> anyhow::Result<Loads> {
        let place = |lat, lon| Place::from_degrees(lat, lon).context("a place on the globe");
        let mut numbers = BTreeMap::new();
        for fix in recorded.fixes.iter().rev() {
            numbers.insert(fix.user, (0_u32, place(fix.lat, fix.lon)?));
        }
        for ((number, _), next) in numbers.values_mut().zip(0..) {
            *number = next;
        }
        let number = |user: &UserId| numbers.get(user).map(|(number, _)| *number);
        let moves = recorded.fixes.iter().map(|fix| Ok((numbers[&fix.user].0, place(fix.lat, fix.lon)?)));
        let moves: Vec<Move> = moves.collect::<anyhow::Result<_>>()?;
        let friends = numbers.keys().map(|user| {
            let list = recorded.lists.get(user).into_iter().flatten();
            list.filter_map(number).filter(|friend| Some(*friend) != number(user)).collect()
        });
        let (friends, places) = (Arc::new(friends.collect()), numbers.values().map(|(_, place)| *place).collect());
        Ok(Loads::of(workload, input, friends, places, Source::Recorded { moves: Arc::new(moves), next: 0, run: 0 }))
    }

    /// The same from the beginning, for another peer.
    pub fn again(&self) -> Loads {
        let source = match &self.source {
            Source::Invented(..) => Source::invented(&self.places),
            Source::Recorded { moves, .. } => Source::Recorded { moves: Arc::clone(moves), next: 0, run: 0 },
        };
        Loads::of(self.workload, &self.input, Arc::clone(&self.friends), self.places.clone(), source)
    }

    fn of(workload: Workload, input: &Input, friends: Arc<Vec<Vec<u32>>>, places: Vec<Place>, source: Source) -> Loads {
        let truth = Truth::new(places.clone(), Arc::clone(&friends));
        Loads { workload, input: input.clone(), friends, places, source, truth }
    }

    pub fn users(&self) -> usize {
        self.places.len()
    }

    /// What it is, for people.
    pub fn described(&self) -> String {
        let friendships: usize = self.friends.iter().map(Vec::len).sum();
        let mean = friendships as f64 / self.users() as f64;
        let moves = match &self.source {
            Source::Invented(..) => String::new(),
            Source::Recorded { moves, .. } => format!(", {} recorded reports", moves.len()),
        };
        format!("{}: {} users, {mean:.1} friends each{moves}", self.workload.name(), self.users())
    }

    /// The reports of a run, at most so many, and what has to be told because of them. A recording is cut into `runs` parts, the same for
    /// everybody, and each run has the beginning of the next part.
    pub fn run(&mut self, reports: usize, runs: usize) -> (Vec<Move>, Count) {
        let mut at_most = reports;
        if let Source::Recorded { moves, next, run } = &mut self.source {
            *next = *run % runs * moves.len() / runs;
            *run += 1;
            at_most = reports.min(moves.len() / runs);
        }
        self.steady(at_most)
    }

    /// The next so many reports, and what has to be told because of them.
    pub fn steady(&mut self, reports: usize) -> (Vec<Move>, Count) {
        let moves = self.moves(reports);
        let count = self.truth.count(&moves);
        (moves, count)
    }

    /// The next so many reports. After these, nothing that has to be told can be counted any more.
    pub fn moves(&mut self, reports: usize) -> Vec<Move> {
        match &mut self.source {
            Source::Invented(world, left) => {
                while left.len() < reports {
                    left.extend(world.round());
                }
                left.drain(..reports).collect()
            }
            Source::Recorded { moves, next, .. } => {
                let from = std::mem::replace(next, (*next + reports) % moves.len());
                moves.iter().cycle().skip(from).take(reports).copied().collect()
            }
        }
    }
}

impl Source {
    fn invented(places: &[Place]) -> Source {
        Source::Invented(Box::new(World::at(places.to_vec())), VecDeque::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_recorded::Fix;

    fn input() -> Input {
        Input { users: 200, friends: 20, recorded: None }
    }

    fn place(lat: f64) -> Place {
        Place::from_degrees(lat, 8.0).unwrap()
    }

    /// 30 knows 10 and 40, who never reports; both have been at two places.
    fn recording() -> Loads {
        let fix = |at_s, user, lat| Fix { at_s, user: UserId(user), lat, lon: 8.0 };
        let fixes = vec![fix(1, 30, 50.0), fix(2, 10, 51.0), fix(3, 30, 50.1), fix(4, 10, 50.1)];
        let list = |user, friends: &[i64]| (UserId(user), friends.iter().copied().map(UserId).collect());
        let lists = BTreeMap::from([list(10, &[30]), list(30, &[10, 40]), list(40, &[30])]);
        Loads::recorded(Workload::Gowalla, &input(), &Recorded { fixes, lists }).unwrap()
    }

    #[test]
    fn who_reports_is_numbered_and_begins_at_the_first_place() {
        let mut loads = recording();
        assert_eq!(*loads.friends, [vec![1], vec![0]]);
        assert_eq!(loads.places, [place(51.0), place(50.0)]);
        let moves = [(1, place(50.0)), (0, place(51.0)), (1, place(50.1)), (0, place(50.1))];
        assert_eq!(loads.moves(6), [moves[0], moves[1], moves[2], moves[3], moves[0], moves[1]], "then again");
        assert_eq!(loads.moves(1), [moves[2]]);
    }

    #[test]
    fn runs_begin_at_the_same_reports_however_long_they_are() {
        let whole = |reports| {
            let mut loads = recording();
            let runs: Vec<_> = (0..3).map(|_| loads.run(reports, 2)).collect();
            runs
        };
        let (long, short) = (whole(100), whole(1));
        assert_eq!(long.iter().map(|(moves, _)| moves.len()).collect::<Vec<_>>(), [2, 2, 2]);
        for (long, short) in long.iter().zip(&short) {
            assert_eq!(long.0[0], short.0[0]);
        }
        // 10 comes to 30, and both are told; then 30 goes back, and so does 10.
        assert_eq!([long[1].1.shown, long[2].1.left], [2, 2]);
    }

    #[test]
    fn rounds_are_not_cut_off() {
        let mut loads = Loads::new(Workload::W, &input()).unwrap();
        let (first, then) = (loads.moves(150), loads.moves(50));
        assert_eq!(loads.again().moves(150), first, "another peer is given the same");
        let mut users: Vec<u32> = first.iter().chain(&then).map(|(user, _)| *user).collect();
        users.sort_unstable();
        assert_eq!(users, (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn another_process_is_told_all_of_it() {
        let arguments = Input { users: 5, friends: 6, recorded: Some("x".into()) }.arguments(Workload::Taxis);
        assert_eq!(arguments.join(" "), "--workload taxis --users 5 --friends 6 --recorded x");
    }
}
