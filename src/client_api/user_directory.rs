//! Searching for people.

use axum::extract::State;
use hearth_users::Users;
use ruma::{OwnedMxcUri, api::client::user_directory::search_users};

use crate::http::{ApiResult, LocalUser, RateClass, Route, Routes, Ruma, Specimen};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<search_users::v3::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path("").body(r#"{"search_term":"ann"}"#, r#"{"search_term":1}"#))
            .to(search),
    );
}

/// `POST /_matrix/client/v3/user_directory/search`
async fn search(
    State(users): State<Users>,
    _user: LocalUser,
    Ruma(request): Ruma<search_users::v3::Request>,
) -> ApiResult<search_users::v3::Response> {
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(usize::MAX);
    let found = users.search_people(&request.search_term, &[], limit).await?;
    let people = found.people.into_iter().map(|person| {
        let mut shown = search_users::v3::User::new(person.user_id);
        shown.display_name = person.display_name;
        shown.avatar_url = person.avatar_url.map(OwnedMxcUri::from);
        shown
    });
    Ok(Ruma(search_users::v3::Response::new(people.collect(), found.limited)))
}
