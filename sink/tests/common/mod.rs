//! A migrated database of the test's own.

use nearby_e2e::postgres::Postgres;
use nearby_sink::{Database, connect};

pub async fn migrated() -> (Postgres, Database) {
    let postgres = Postgres::start().expect("Postgres starts");
    let database = connect(&postgres.url()).await.expect("it lets us in");
    database.migrate().await.expect("an empty database can be migrated");
    (postgres, database)
}
