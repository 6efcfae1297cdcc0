//! Nodes of a state tree, and the records that hold them.
//! * A leaf has up to [`LEAF_MAX`] entries in the order of their index; a branch has sixteen children, by the next
//!   four bits of the index, lowest first: keys are numbered densely, so trees are even.
//! * Nodes never change. A record is written once, with all nodes of a change.

use hearth_store::Malformed;

use crate::ids::{EventSn, NodeRef, RecordSn};

/// Entries of a leaf before it is split.
pub const LEAF_MAX: usize = 8;
/// Children of a branch.
pub const FAN_OUT: usize = 16;
/// A record is closed once it has this many bytes.
pub const RECORD_BYTES: usize = 4096;
/// And at most this many nodes, as a [`NodeRef`] counts them in one byte.
pub const RECORD_NODES: usize = 250;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Leaf(Vec<(u32, EventSn)>),
    Branch(Box<[NodeRef; FAN_OUT]>),
}

impl Node {
    /// Which child of a branch at `depth` leads to `index`.
    pub fn turn(index: u32, depth: u32) -> usize {
        // Eight turns use up the 32 bits; a branch is never deeper, as a leaf at depth 8 has one index.
        (index.checked_shr(4 * depth).unwrap_or(0) & 15) as usize
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Node::Leaf(entries) => {
                out.push(entries.len() as u8);
                let mut last = 0;
                for (index, event) in entries {
                    write_number(out, index - last);
                    write_number(out, event.0);
                    last = *index;
                }
            }
            Node::Branch(children) => {
                let taken = (0..FAN_OUT).filter(|turn| !children[*turn].is_empty());
                let mask = taken.clone().fold(0u16, |mask, turn| mask | 1 << turn);
                out.push(BRANCH);
                out.extend_from_slice(&mask.to_be_bytes());
                for turn in taken {
                    write_number(out, children[turn].record.0);
                    out.push(children[turn].index);
                }
            }
        }
    }

    fn read(input: &mut &[u8]) -> Result<Self, Malformed> {
        let first = read_byte(input)?;
        if first == BRANCH {
            let mask = u16::from_be_bytes([read_byte(input)?, read_byte(input)?]);
            let mut children = Box::new([NodeRef::EMPTY; FAN_OUT]);
            for (turn, child) in children.iter_mut().enumerate() {
                if mask & 1 << turn != 0 {
                    *child = NodeRef { record: RecordSn(read_number(input)?), index: read_byte(input)? };
                }
            }
            return Ok(Node::Branch(children));
        }
        if usize::from(first) > LEAF_MAX {
            return Err(Malformed::new("a leaf with too many entries"));
        }
        let mut entries = Vec::with_capacity(usize::from(first));
        let mut last = 0u32;
        for _ in 0..first {
            last = last.checked_add(read_number(input)?).ok_or(Malformed::new("an index past its range"))?;
            entries.push((last, EventSn(read_number(input)?)));
        }
        Ok(Node::Leaf(entries))
    }
}

const BRANCH: u8 = 0xff;

/// The nodes of one row.
#[derive(Debug, Default)]
pub struct NodeRecord {
    pub nodes: Vec<Node>,
}

impl NodeRecord {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.nodes.len() * 64);
        for node in &self.nodes {
            node.write(&mut out);
        }
        out
    }

    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let mut nodes = Vec::new();
        while !bytes.is_empty() {
            nodes.push(Node::read(&mut bytes)?);
        }
        Ok(NodeRecord { nodes })
    }

    /// What it takes in memory.
    pub fn weight(&self) -> u64 {
        let of = |node: &Node| match node {
            Node::Leaf(entries) => 32 + entries.len() * 8,
            Node::Branch(_) => 32 + FAN_OUT * 8,
        };
        64 + self.nodes.iter().map(of).sum::<usize>() as u64
    }
}

/// Collects the nodes of a change into records.
#[derive(Debug, Default)]
pub struct RecordWriter {
    pub done: Vec<(RecordSn, NodeRecord)>,
    open: Option<(RecordSn, NodeRecord, usize)>,
}

impl RecordWriter {
    /// Adds a node; `next` is the room's next record number.
    pub fn add(&mut self, node: Node, next: &mut u32) -> NodeRef {
        let (record, nodes, bytes) = self.open.get_or_insert_with(|| {
            let record = RecordSn(*next);
            *next += 1;
            (record, NodeRecord::default(), 0)
        });
        let at = NodeRef { record: *record, index: nodes.nodes.len() as u8 };
        *bytes += match &node {
            Node::Leaf(entries) => 1 + entries.len() * 6,
            Node::Branch(_) => 3 + FAN_OUT * 5,
        };
        nodes.nodes.push(node);
        if *bytes >= RECORD_BYTES || nodes.nodes.len() >= RECORD_NODES {
            self.close();
        }
        at
    }

    /// A node that was added and is not written yet.
    pub fn node(&self, at: NodeRef) -> Option<&Node> {
        let open = self.open.as_ref().filter(|(record, ..)| *record == at.record);
        let nodes = match open {
            Some((_, nodes, _)) => nodes,
            // Numbers only grow.
            None => {
                let place = self.done.binary_search_by_key(&at.record, |(record, _)| *record).ok()?;
                &self.done[place].1
            }
        };
        nodes.nodes.get(usize::from(at.index))
    }

    pub fn count(&self) -> usize {
        self.done.len() + usize::from(self.open.is_some())
    }

    pub fn close(&mut self) {
        if let Some((record, nodes, _)) = self.open.take() {
            self.done.push((record, nodes));
        }
    }
}

fn write_number(out: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_number(input: &mut &[u8]) -> Result<u32, Malformed> {
    let mut number = 0u64;
    for shift in (0..35).step_by(7) {
        let byte = read_byte(input)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(number).map_err(|_| Malformed::new("a number past its range"));
        }
    }
    Err(Malformed::new("a number without an end"))
}

fn read_byte(input: &mut &[u8]) -> Result<u8, Malformed> {
    let (byte, rest) = input.split_first().ok_or(Malformed::new("a node record that ends early"))?;
    *input = rest;
    Ok(*byte)
}
