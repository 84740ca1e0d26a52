//! The NUMA node that a buffer is to be on.

use super::{Attempted, Cause, Context};
use crate::dma::memory::node::{Preferred, there_are_several};
use crate::dma::{Node, NodeReport};

impl Context<'_> {
    /// The node that the request wishes for, where there is a choice.
    pub(super) fn wanted_node(&self) -> Option<u32> {
        if !there_are_several() {
            return None;
        }
        match self.request.node {
            Node::Device => self.owner.numa_node(),
            Node::Any => None,
            Node::Only(node) => Some(node),
        }
    }

    /// Has memory come from a node as long as the value lives.
    pub(super) fn prefer(&self, node: u32) -> Option<Preferred> {
        Preferred::node(node)
            .inspect_err(|errno| {
                log::warn!("{}: memory of node {node}: {errno}", self.owner.location());
            })
            .ok()
    }

    /// Finds out where a buffer is; fails when that is not the only node that may be.
    pub(super) fn on_node(&self, attempted: Attempted, wanted: Option<u32>) -> Attempted {
        let mut placed = attempted?;
        let Some(wanted) = wanted else { return Ok(placed) };
        let found = match placed.buffer.nodes() {
            Some(Ok(found)) => found,
            Some(Err(errno)) => {
                log::warn!("{}: which nodes memory is on: {errno}", self.owner.location());
                Vec::new()
            }
            None => return Ok(placed),
        };
        let on = |found: &[(u32, u64)], wanted: bool, node| -> u64 {
            found.iter().filter(|(on, _)| (*on == node) == wanted).map(|(_, bytes)| bytes).sum()
        };
        let is_strict = matches!(self.request.node, Node::Only(_));
        if is_strict && (on(&found, false, wanted) > 0 || on(&found, true, wanted) == 0) {
            let elsewhere = on(&found, false, wanted);
            return Err(self.failed(Cause::OtherNode { wanted, elsewhere }, placed.tries));
        }
        placed.node = (!found.is_empty()).then_some(NodeReport { wanted, found });
        Ok(placed)
    }
}
