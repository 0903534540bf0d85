//! docs/analysts.md: every question in it is asked, and answered as it says there. `UPDATE_EXPECT=1` writes the answers.

mod common;

use common::migrated;
use nearby_e2e::movement::Movement;
use nearby_e2e::postgres::Postgres;
use nearby_e2e::programs::root;

/// As `nearby-bench history --users 2000 --days 4 --only-load` has it; the first day is 2026-01-05.
const MOVEMENT: Movement = Movement { users: 2_000, days: 4, fixes_per_day: 50, first_day: 20_458, seed: 1 };
const QUESTION: &str = "```sql\n";
const ANSWER: &str = "```text\n";
const END: &str = "```\n";
const QUESTIONS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn questions_have_the_answers_that_the_document_shows() {
    let (postgres, _database) = migrated().await;
    postgres.psql(&MOVEMENT.partitions_sql()).expect("partitions");
    for day in 0..MOVEMENT.days {
        postgres.psql(&MOVEMENT.day_sql(day)).expect("a day");
    }
    postgres.psql(&MOVEMENT.friends_sql()).expect("friend lists");
    postgres.psql("vacuum analyze nearby.location_history; analyze nearby.friend_lists").expect("analysed");

    let path = root().join("docs/analysts.md");
    let written = std::fs::read_to_string(&path).expect("the document");
    let answered = answered(&postgres, &written);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &answered).expect("the document is written");
        return;
    }
    for (line, (written, answered)) in written.lines().zip(answered.lines()).enumerate() {
        assert_eq!(written, answered, "docs/analysts.md, line {}", line + 1);
    }
    assert_eq!(written, answered, "docs/analysts.md");
}

/// The document with today's answers in the place of those that are in it.
fn answered(postgres: &Postgres, document: &str) -> String {
    let mut parts = document.split(QUESTION);
    let mut text = parts.next().expect("text before the first question").to_owned();
    let mut asked = 0;
    for part in parts {
        let (question, rest) = part.split_once(END).expect("a question has an end");
        let as_people_see_it =
            format!("set timezone to 'UTC';\n\\pset format aligned\n\\pset tuples_only off\n{question}");
        let answer = postgres.psql(&as_people_see_it).expect("an answer");
        let answer: Vec<&str> = answer.lines().map(str::trim_end).filter(|line| !is_chatter(line)).collect();
        let rest = rest.trim_start_matches('\n');
        let rest = match rest.strip_prefix(ANSWER) {
            Some(rest) => rest.split_once(END).expect("an answer has an end").1.trim_start_matches('\n'),
            None => rest,
        };
        text += &format!("{QUESTION}{question}{END}\n{ANSWER}{}\n{END}\n{rest}", answer.join("\n"));
        asked += 1;
    }
    assert_eq!(asked, QUESTIONS);
    text
}

/// What psql says about its own settings.
fn is_chatter(line: &str) -> bool {
    line.is_empty() || line.starts_with("Output format is") || line.starts_with("Tuples only is")
}
