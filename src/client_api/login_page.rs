//! Login as a web page, for clients that cannot log in themselves.

use axum::response::Response;
use http::{Method, StatusCode};

use super::pages::page;
use crate::http::{Auth, Route, Routes, Specimen};

/// The chapter's endpoint.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::at(Method::GET, "/_matrix/static/client/login/", Auth::None)
            .specimen(Specimen::path(""))
            .to(login_page),
    );
}

const FORM: &str = "<h1>Log in</h1><form>\
    <p><label>User name <input name=\"user\" autocomplete=\"username\" autofocus></label></p>\
    <p><label>Password <input name=\"password\" type=\"password\" autocomplete=\"current-password\"></label></p>\
    <p><button type=\"submit\">Log in</button></p></form><p id=\"note\" role=\"status\"></p>";

/// Logs in with what the page's address says of the device, and hands the answer to the client that opened the page.
const SCRIPT: &str = r#"
const form = document.forms[0], note = document.getElementById("note");
form.addEventListener("submit", async (event) => {
    event.preventDefault();
    note.textContent = "";
    const identifier = { type: "m.id.user", user: form.elements.user.value };
    const login = { type: "m.login.password", identifier, password: form.elements.password.value };
    const asked = new URLSearchParams(location.search);
    for (const key of ["device_id", "initial_device_display_name"]) {
        if (asked.get(key)) login[key] = asked.get(key);
    }
    try {
        const headers = { "Content-Type": "application/json" };
        const request = { method: "POST", headers, body: JSON.stringify(login) };
        const answer = await fetch("/_matrix/client/v3/login", request);
        const json = await answer.json();
        if (!answer.ok) throw new Error(json.error);
        note.textContent = "You are logged in. This window may be closed now.";
        if (window.onLogin) window.onLogin(json);
    } catch (error) {
        note.textContent = error.message;
    }
});
"#;

/// `GET /_matrix/static/client/login/`
async fn login_page() -> Response {
    page(StatusCode::OK, "Log in", FORM, Some(SCRIPT))
}
