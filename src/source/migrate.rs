//! The migrations, built into the program, and their runner.
//!
//! Forward only; a migration that was released is never edited. All that sidetone adds lives in the
//! schema `sidetone`, the list of applied migrations among it.

use sqlx::PgConnection;
use sqlx::migrate::{MigrateError, Migrator};

/// The `sidetone.meta.schema_version` this program reads and writes; equals the last migration's number.
pub const SCHEMA_VERSION: i32 = 2;

/// Every migration of this program, told where to keep its records.
pub fn migrator() -> Migrator {
    let mut all = sqlx::migrate!("./migrations");
    all.dangerous_set_table_name("sidetone._sqlx_migrations");
    all.create_schema("sidetone");
    all
}

/// Brings the database up to [`SCHEMA_VERSION`]. Does nothing where it is there already.
///
/// Two runs at once wait for each other on an advisory lock. After an error the lock stays with the
/// connection: close it.
///
/// # Errors
/// [`MigrateError`] when a migration fails (it leaves nothing behind) or the database was migrated by a newer
/// program or an edited migration.
pub async fn run(conn: &mut PgConnection) -> Result<(), MigrateError> {
    migrator().run_direct(None, conn, false).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_version_is_the_number_of_the_last_migration() {
        let last = migrator().iter().map(|m| m.version).max();
        assert_eq!(last, Some(i64::from(SCHEMA_VERSION)));
    }
}
