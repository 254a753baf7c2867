//! One call, as the command line tells it: number, context, instant.

use clap::ArgAction;

use super::key_value;

/// The called number and what is known of the call.
#[derive(Debug, clap::Args)]
pub struct CallArgs {
    /// Called number, in any spelling
    #[arg(allow_hyphen_values = true)]
    pub number: String,
    /// Account the call is about
    #[arg(long, value_name = "REF", help_heading = "Context of the call")]
    pub account_ref: Option<String>,
    /// Type of the event
    #[arg(long, value_name = "TYPE", help_heading = "Context of the call")]
    pub event_type: Option<String>,
    /// Zone of the event; may repeat
    #[arg(long, value_name = "ZONE", help_heading = "Context of the call")]
    pub zone: Vec<String>,
    /// Whether the call is outside business hours [default: worked out from the tenant's business hours]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, help_heading = "Context of the call")]
    pub outside_business_hours: Option<bool>,
    /// Any other attribute a condition may name; may repeat
    #[arg(long, value_name = "NAME=VALUE", value_parser = key_value, help_heading = "Context of the call")]
    pub attr: Vec<(String, String)>,
    /// Instant of the call, RFC 3339 [default: now]
    #[arg(long, value_name = "INSTANT", help_heading = "Context of the call")]
    pub at: Option<jiff::Timestamp>,
}

impl CallArgs {
    /// The parameters of the question.
    #[must_use]
    pub fn query(&self) -> Vec<(String, String)> {
        let mut query = vec![("to".to_owned(), self.number.clone())];
        let mut add = |name: &str, value: String| query.push((name.to_owned(), value));
        if let Some(account_ref) = &self.account_ref {
            add("account_ref", account_ref.clone());
        }
        if let Some(event_type) = &self.event_type {
            add("event_type", event_type.clone());
        }
        for zone in &self.zone {
            add("zone", zone.clone());
        }
        if let Some(outside) = self.outside_business_hours {
            add("outside_business_hours", outside.to_string());
        }
        for (name, value) in &self.attr {
            add(&format!("attr.{name}"), value.clone());
        }
        if let Some(at) = self.at {
            add("at", at.to_string());
        }
        query
    }
}
