//! Closing an account for good.
//! * The account is closed by its first commit: no token works after it, whatever the later steps meet.
//! * The steps after it can be repeated; what they remove is gone or will be removed when it is asked for again.

use hearth_store::{Commit, CommitError};
use ruma::UserId;

use crate::{
    AccountError, Users, UsersError,
    accounts::Account,
    tables::{ACCOUNT_DATA, ACCOUNT_DATA_CHANGES, ACCOUNTS, FILTER_IDS, FILTERS, PASSWORDS},
    users::ATTEMPTS,
};

/// What is left for those who see rooms and media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deactivation {
    /// Leave all joined rooms, reject all invites, withdraw all knocks.
    pub leave_rooms: bool,
    /// The user wishes that what they sent is not shown to those who join later.
    pub erase: bool,
}

impl Users {
    /// Closes the account: password, sessions, devices, profile, account data and filters go, the name stays taken.
    pub async fn deactivate(&self, user: &UserId, erase: bool) -> Result<Deactivation, AccountError> {
        self.close_account(user, erase).await?;
        self.delete_devices_except(user, None).await?;
        self.remove_profile(user).await?;
        self.forget_settings(user).await?;
        self.presence().forget(user);
        Ok(Deactivation { leave_rooms: true, erase })
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
            let outcome = self.inner.store.commit(commit).await;
            self.inner.accounts.drop(&id.as_str().into());
            match outcome {
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
        self.inner.store.commit(commit).await?;
        self.inner.push_rules.drop(&id.as_str().into());
        self.inner.ignores.drop(&id.as_str().into());
        Ok(())
    }
}
