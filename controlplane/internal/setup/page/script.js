"use strict";
const get = (id) => document.getElementById(id);
const [token, pin] = location.hash.slice(1).split(".");
const problem = (text) => { get("problem").textContent = text; };

if (!token) {
  problem("The link is not whole: what follows its # is missing. Copy it as the control plane printed it.");
  get("button").disabled = true;
}

get("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const email = get("email").value.trim(), password = get("password").value;
  if (password !== get("again").value) {
    problem("The two passwords differ.");
    return;
  }
  problem("");
  get("button").disabled = true;
  try {
    const response = await fetch("/fleetban.operator.v1.SetupService/Setup", {
      method: "POST",
      headers: { "Content-Type": "application/json", "Connect-Protocol-Version": "1", "Fleetban-Session": "cookie" },
      body: JSON.stringify({ token, email, password, organisationName: get("organisation").value.trim() }),
    });
    const answer = await response.json();
    if (!response.ok) {
      const fix = (answer.details ?? []).map((d) => d.debug?.fix).find(Boolean);
      problem(answer.message + (fix ? ": " + fix : "") + ".");
      return;
    }
    history.replaceState(null, "", location.pathname);
    let login = `fleetban login --url ${location.origin} --email ${answer.person.email}`;
    if (pin) {
      login += " --pin sha256//" + pin.replaceAll("-", "+").replaceAll("_", "/") + "=";
    }
    get("login").textContent = login;
    get("form").hidden = true;
    get("done").hidden = false;
  } catch {
    problem("The control plane did not answer. Try again.");
  } finally {
    get("button").disabled = false;
  }
});
