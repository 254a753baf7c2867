//! What others may ask of the feed: pull now, compare everything, read the keyring again.
//!
//! The work belongs to the feed's task, never to a request: a caller that goes away changes nothing.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::row::Table;

/// Most orders waiting for the feed; one more is refused.
const WAITING: usize = 64;

/// What a refresh is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything that changed, then a comparison of everything.
    All,
    /// One tenant, by slug or id, and its numbers.
    Tenant(String),
    /// One number.
    Number(crate::number::E164),
}

/// A refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// Of what.
    pub scope: Scope,
    /// Done only when a pull saw this transaction id as completed.
    pub at_least: Option<u64>,
    /// Lets a held loss through (`feed.hold_if_lost_percent`), and accepts a database without a tenant in common.
    pub accept_loss: bool,
}

/// What a refresh did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshReport {
    /// The snapshot that this node answers with now.
    pub cursor: String,
    /// Rows read from Postgres.
    pub read: u64,
    /// Rows written to the replica because they differed.
    pub written: u64,
    /// Rows removed from the replica.
    pub removed: u64,
    /// Whether a loss was held back.
    pub held: bool,
    /// Time it took.
    pub elapsed_ms: u64,
}

/// One row that differed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `tenants` stands for the tenant with everything but its numbers.
    pub table: Table,
    /// Tenant id or number.
    pub key: String,
    /// `missing`, `different` or `surplus` here.
    pub what: String,
}

/// What a comparison found and repaired.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Tenants compared.
    pub tenants: u64,
    /// Numbers compared.
    pub numbers: u64,
    /// How many rows differed although no row of the change log had named them; must be 0.
    pub differences: u64,
    /// The first hundred of them.
    pub first: Vec<Difference>,
    /// Rows put right in the replica, those included that had changed just now.
    pub repaired: u64,
    /// Whether a loss was held back instead of repaired.
    pub held: bool,
    /// Time it took.
    pub elapsed_ms: u64,
}

/// Why an order to the feed was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Too many orders are waiting.
    #[error("too many refreshes are waiting; try again later")]
    Busy,
    /// Postgres cannot be reached.
    #[error("Postgres cannot be reached: {0}")]
    Unreachable(String),
    /// No such tenant, in Postgres or here.
    #[error("no such tenant")]
    NoSuchTenant,
    /// `at_least` names a transaction that did not complete in time.
    #[error("transaction {0} has not completed yet")]
    NotReached(u64),
    /// The database has no tenant in common with the replica.
    #[error(
        "the database has no tenant in common with this node's replica; if that is right, refresh with accept_loss"
    )]
    OtherDatabase,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// An order with the way back.
#[derive(Debug)]
pub enum Order {
    /// Pull now.
    Refresh(Refresh, oneshot::Sender<Result<RefreshReport, OrderError>>),
    /// Compare everything.
    Verify(oneshot::Sender<Result<VerifyReport, OrderError>>),
}

/// The feed, as others see it.
#[derive(Debug, Clone)]
pub struct FeedHandle(mpsc::Sender<Order>);

impl FeedHandle {
    /// The handle, and where the feed takes its orders from.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Order>) {
        let (send, take) = mpsc::channel(WAITING);
        (Self(send), take)
    }

    /// Orders a pull and a comparison; the report comes when this node answers with what was found.
    ///
    /// # Errors
    /// [`OrderError`]; the caller sets its own limit of time.
    pub async fn refresh(&self, refresh: Refresh) -> Result<RefreshReport, OrderError> {
        self.order(|back| Order::Refresh(refresh, back)).await
    }

    /// Orders a comparison of everything and the repair of what differs.
    ///
    /// # Errors
    /// [`OrderError`]; the caller sets its own limit of time.
    pub async fn verify(&self) -> Result<VerifyReport, OrderError> {
        self.order(Order::Verify).await
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, OrderError>>) -> Order,
    ) -> Result<T, OrderError> {
        let (back, report) = oneshot::channel();
        self.0.try_send(order(back)).map_err(|err| match err {
            mpsc::error::TrySendError::Full(_) => OrderError::Busy,
            mpsc::error::TrySendError::Closed(_) => OrderError::Stopping,
        })?;
        report.await.unwrap_or(Err(OrderError::Stopping))
    }
}
