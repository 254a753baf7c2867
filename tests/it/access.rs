//! Who may ask what, over real sockets, by the kernel's word.

use crate::cluster::Cluster;
use crate::node::{ACME, Node};
