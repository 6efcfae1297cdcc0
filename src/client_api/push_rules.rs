//! Push rules: what notifies a user, and how.

use axum::extract::State;
use hearth_users::Users;
use ruma::{
    api::client::push::{
        delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
        get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
    },
    push::{AnyPushRuleRef, RuleKind, Ruleset},
};
use serde_json::json;

use crate::http::{
    ApiResult, JsonResult, LocalUser, MatrixError, PathArgs, RateClass, RawJson, Route, Routes, Ruma,
    Specimen,
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const NOTHING: Specimen = Specimen::path("");
    let predefined = Specimen::path("override .m.rule.suppress_notices");
    routes.add(
        Route::of::<get_pushrules_all::v3::Request>()
            .also_at("/_matrix/client/v3/pushrules")
            .specimen(NOTHING)
            .to(all),
    );
    routes.add(
        Route::of::<get_pushrules_global_scope::v3::Request>()
            .also_at("/_matrix/client/v3/pushrules/global")
            .specimen(NOTHING)
            .to(global),
    );
    routes.add(Route::of::<get_pushrule::v3::Request>().specimen(predefined).to(rule));
    routes.add(
        Route::of::<set_pushrule::v3::Request>()
            .rate(RateClass::Other)
            .specimen(
                Specimen::path("content tea")
                    .body(r#"{"pattern":"tea","actions":["notify"]}"#, r#"{"pattern":1,"actions":[]}"#),
            )
            .to(put),
    );
    routes
        .add(Route::of::<delete_pushrule::v3::Request>().specimen(Specimen::path("content tea")).to(remove));
    routes.add(Route::of::<get_pushrule_actions::v3::Request>().specimen(predefined).to(actions));
    routes.add(
        Route::of::<set_pushrule_actions::v3::Request>()
            .specimen(predefined.body(r#"{"actions":["notify"]}"#, r#"{"actions":1}"#))
            .to(set_actions),
    );
    routes.add(Route::of::<get_pushrule_enabled::v3::Request>().specimen(predefined).to(is_enabled));
    routes.add(
        Route::of::<set_pushrule_enabled::v3::Request>()
            .specimen(predefined.body(r#"{"enabled":false}"#, r#"{"enabled":1}"#))
            .to(enable),
    );
}

/// `GET /_matrix/client/v3/pushrules/`
async fn all(State(users): State<Users>, user: LocalUser) -> JsonResult {
    let rules = users.push_rules(&user.user_id).await?;
    RawJson::of(&rules.shown())
}

/// `GET /_matrix/client/v3/pushrules/global/`
async fn global(State(users): State<Users>, user: LocalUser) -> JsonResult {
    let rules = users.push_rules(&user.user_id).await?;
    RawJson::of(&rules.shown().global)
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn rule(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((kind, rule_id)): PathArgs<(RuleKind, String)>,
) -> JsonResult {
    let rules = users.push_rules(&user.user_id).await?;
    match find(&rules.ruleset, kind, &rule_id)? {
        AnyPushRuleRef::Override(rule) | AnyPushRuleRef::Underride(rule) => RawJson::of(rule),
        AnyPushRuleRef::Content(rule) => RawJson::of(rule),
        AnyPushRuleRef::Room(rule) => RawJson::of(rule),
        AnyPushRuleRef::Sender(rule) => RawJson::of(rule),
        _ => Err(no_such_rule()),
    }
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn put(
    State(users): State<Users>,
    user: LocalUser,
    Ruma(request): Ruma<set_pushrule::v3::Request>,
) -> ApiResult<set_pushrule::v3::Response> {
    let (before, after) = (request.before.as_deref(), request.after.as_deref());
    users.put_push_rule(&user.user_id, request.rule, before, after).await?;
    Ok(Ruma(set_pushrule::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn remove(
    State(users): State<Users>,
    user: LocalUser,
    Ruma(request): Ruma<delete_pushrule::v3::Request>,
) -> ApiResult<delete_pushrule::v3::Response> {
    users.remove_push_rule(&user.user_id, request.kind, &request.rule_id).await?;
    Ok(Ruma(delete_pushrule::v3::Response::new()))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`
async fn actions(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((kind, rule_id)): PathArgs<(RuleKind, String)>,
) -> JsonResult {
    let rules = users.push_rules(&user.user_id).await?;
    RawJson::of(&json!({ "actions": find(&rules.ruleset, kind, &rule_id)?.actions() }))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`
async fn set_actions(
    State(users): State<Users>,
    user: LocalUser,
    Ruma(request): Ruma<set_pushrule_actions::v3::Request>,
) -> ApiResult<set_pushrule_actions::v3::Response> {
    users.set_push_rule_actions(&user.user_id, request.kind, &request.rule_id, request.actions).await?;
    Ok(Ruma(set_pushrule_actions::v3::Response::new()))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`
async fn is_enabled(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((kind, rule_id)): PathArgs<(RuleKind, String)>,
) -> JsonResult {
    let rules = users.push_rules(&user.user_id).await?;
    RawJson::of(&json!({ "enabled": find(&rules.ruleset, kind, &rule_id)?.enabled() }))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`
async fn enable(
    State(users): State<Users>,
    user: LocalUser,
    Ruma(request): Ruma<set_pushrule_enabled::v3::Request>,
) -> ApiResult<set_pushrule_enabled::v3::Response> {
    users.enable_push_rule(&user.user_id, request.kind, &request.rule_id, request.enabled).await?;
    Ok(Ruma(set_pushrule_enabled::v3::Response::new()))
}

fn find<'a>(rules: &'a Ruleset, kind: RuleKind, rule_id: &str) -> Result<AnyPushRuleRef<'a>, MatrixError> {
    rules.get(kind, rule_id).ok_or_else(no_such_rule)
}

fn no_such_rule() -> MatrixError {
    MatrixError::not_found("there is no such push rule")
}
