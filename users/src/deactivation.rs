//! Closing an account for good.
//! * The account is closed by its first commit: no token works after it, whatever the later steps meet.
//! * That commit also notes that there is more to do. The steps after it can be repeated; whoever starts the server goes
//!   on with those that were noted and not finished.

use hearth_store::{Commit, CommitError, Order, StoreError};
use ruma::{OwnedUserId, UserId};

use crate::{
    AccountError, Users, UsersError,
    accounts::Account,
    tables::{
        ACCOUNT_DATA, ACCOUNT_DATA_CHANGES, ACCOUNTS, DEACTIVATIONS, DeactivationRecord, FILTER_IDS, FILTERS,
        PASSWORDS,
    },
    users::ATTEMPTS,
};

/// A deactivation that is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deactivation {
    /// Whose account is closed.
    pub user: OwnedUserId,
    /// The user wishes that what they sent is not shown to those who join later.
    pub erase: bool,
}

impl Users {
    /// Closes the account, and notes that what belongs to it is still to go: [`Users::clear_account`], then the rooms,
    /// which are for the caller, then [`Users::deactivated`].
    pub async fn deactivate(&self, user: &UserId, erase: bool) -> Result<(), AccountError> {
        self.close_account(user, erase).await
    }

    /// Removes what belonged to a closed account: sessions, devices, profile, account data and filters go, the name
    /// stays taken.
    pub async fn clear_account(&self, user: &UserId) -> Result<(), UsersError> {
        self.delete_devices_except(user, None).await?;
        self.remove_profile(user).await?;
        self.forget_settings(user).await?;
        self.presence().forget(user);
        Ok(())
    }

    /// Everything is done that belongs to a deactivation.
    pub async fn deactivated(&self, user: &UserId) -> Result<(), UsersError> {
        let mut commit = Commit::new();
        commit.delete(&DEACTIVATIONS, &user.as_str().to_owned());
        self.inner.store.commit(commit).await?;
        Ok(())
    }

    /// Deactivations that are not finished, after `after`.
    pub async fn unfinished_deactivations(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<Deactivation>, StoreError> {
        let mut range = DEACTIVATIONS.all();
        if let Some(after) = after {
            range = range.after(&after.as_str().to_owned());
        }
        let rows = self.inner.store.range(&DEACTIVATIONS, range, Order::Forward, limit).await?;
        let unfinished = rows.into_iter().filter_map(|(user, row)| {
            Some(Deactivation { user: UserId::parse(user).ok()?, erase: row.erase })
        });
        Ok(unfinished.collect())
    }

    async fn close_account(&self, user: &UserId, erase: bool) -> Result<(), AccountError> {
        let id = user.as_str().to_owned();
        for _ in 0..ATTEMPTS {
            let before = self.account(user).await?.ok_or(AccountError::Unknown)?;
            let after = Account {
                deactivated: true,
                erased: before.erased || erase,
                admin: false,
                ..(*before).clone()
            };
            let mut commit = Commit::new();
            commit.expect(&ACCOUNTS, &id, &*before);
            commit.put(&ACCOUNTS, &id, &after);
            commit.delete(&PASSWORDS, &id);
            commit.put(&DEACTIVATIONS, &id, &DeactivationRecord { erase: after.erased });
            let closed = id.clone();
            let done = self.commit_then(commit, move |users, _| {
                users.inner.accounts.drop(&closed.as_str().into());
                users.inner.endings.wake_all();
            });
            match done.await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    async fn forget_settings(&self, user: &UserId) -> Result<(), UsersError> {
        let id = user.as_str().to_owned();
        let mut commit = Commit::new();
        commit.delete_range_later(&ACCOUNT_DATA, &ACCOUNT_DATA.prefix(&id));
        commit.delete_range_later(&ACCOUNT_DATA_CHANGES, &ACCOUNT_DATA_CHANGES.prefix(&id));
        commit.delete_range_later(&FILTERS, &FILTERS.prefix(&id));
        commit.delete(&FILTER_IDS, &id);
        let done = self.commit_then(commit, move |users, _| {
            users.inner.push_rules.drop(&id.as_str().into());
            users.inner.ignores.drop(&id.as_str().into());
        });
        done.await?;
        Ok(())
    }
}
