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

/// One migration, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its number.
    pub version: i64,
    /// What it does, from its file's name.
    pub what: String,
}

/// The migrations that [`run`] would apply, in order. Changes nothing.
///
/// # Errors
/// [`sqlx::Error`] when the list of applied ones cannot be read.
pub async fn pending(conn: &mut PgConnection) -> Result<Vec<Step>, sqlx::Error> {
    let recorded: bool =
        sqlx::query_scalar("select to_regclass('sidetone._sqlx_migrations') is not null")
            .fetch_one(&mut *conn)
            .await?;
    let applied: Vec<i64> = if recorded {
        sqlx::query_scalar("select version from sidetone._sqlx_migrations where success")
            .fetch_all(&mut *conn)
            .await?
    } else {
        Vec::new()
    };
    let missing = |version: &i64| !applied.contains(version);
    Ok(migrator()
        .iter()
        .filter(|migration| missing(&migration.version))
        .map(|migration| Step {
            version: migration.version,
            what: migration.description.to_string(),
        })
        .collect())
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
