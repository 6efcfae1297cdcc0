//! A store whose commits wait until they are let through: what is done before anything is on the disk shows, and what a
//! process that ends in between leaves. It counts what is read, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use hearth_store::{Answer, Commit, Data, Engine, Pending, Progress, Scan, Store, StoreError};
use parking_lot::Mutex;

pub struct Gate {
    store: Store,
    is_open: AtomicBool,
    refuses: AtomicBool,
    held: Mutex<Vec<(Commit, Answer)>>,
    /// How many keys were looked up, by the space that they begin with.
    reads: Mutex<BTreeMap<u8, usize>>,
}

impl Gate {
    /// An open gate before a store.
    pub async fn before(store: &Store) -> (Arc<Self>, Store) {
        let (store, is_open) = (store.clone(), AtomicBool::new(true));
        let gate = Arc::new(Gate {
            store,
            is_open,
            refuses: AtomicBool::new(false),
            held: Mutex::default(),
            reads: Mutex::default(),
        });
        let gated = Store::on(gate.clone()).await.unwrap();
        (gate, gated)
    }

    pub fn close(&self) {
        self.is_open.store(false, Ordering::SeqCst);
    }

    /// From here on nothing is held: every commit fails, or none.
    pub fn refuse(&self, all: bool) {
        self.is_open.store(true, Ordering::SeqCst);
        self.refuses.store(all, Ordering::SeqCst);
    }

    /// How many keys were looked up in the table of this one.
    pub fn reads(&self, key: &[u8]) -> usize {
        self.reads.lock().get(&key[0]).copied().unwrap_or(0)
    }

    /// Commits that wait.
    pub fn held(&self) -> usize {
        self.held.lock().len()
    }

    /// Lets the first commits through.
    pub async fn let_through(&self, count: usize) {
        let first: Vec<_> = {
            let mut held = self.held.lock();
            let count = count.min(held.len());
            held.drain(..count).collect()
        };
        for (commit, answer) in first {
            let _ = answer.send(self.store.commit(commit).await);
        }
    }
}

#[async_trait]
impl Engine for Gate {
    async fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        *self.reads.lock().entry(key[0]).or_default() += 1;
        self.store.engine().get(key).await
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Data>>, StoreError> {
        for key in keys {
            *self.reads.lock().entry(key[0]).or_default() += 1;
        }
        self.store.engine().multi_get(keys).await
    }

    async fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        self.store.engine().range(scan).await
    }

    fn submit(&self, commit: Commit) -> Pending {
        if self.refuses.load(Ordering::SeqCst) {
            let (answer, pending) = Pending::channel();
            let _ = answer.send(Err(StoreError::Engine("the disk is being looked at".to_owned()).into()));
            return pending;
        }
        if self.is_open.load(Ordering::SeqCst) {
            return self.store.submit(commit);
        }
        let (answer, pending) = Pending::channel();
        self.held.lock().push((commit, answer));
        pending
    }

    fn progress(&self) -> &Arc<Progress> {
        self.store.engine().progress()
    }

    async fn finish(&self) {}

    async fn close(self: Arc<Self>) {}
}
