"use strict";

const english = {
  notWhole: "The link is not whole: what follows its # is missing. Copy it as the control plane printed it.",
  differ: "The two passwords differ.",
  silent: "The control plane did not answer. Try again.",
  short: (n) => `${n} of 12 characters.`,
  strengths: ["", "Weak: it repeats itself.", "It will do. Longer is better.", "Good.", "Strong."],
};
const german = {
  notWhole: "Der Link ist nicht vollständig: was nach seinem # steht, fehlt. Kopiere ihn so, wie ihn die Control Plane gezeigt hat.",
  differ: "Die beiden Passwörter sind verschieden.",
  silent: "Die Control Plane hat nicht geantwortet. Versuche es noch einmal.",
  short: (n) => `${n} von 12 Zeichen.`,
  strengths: ["", "Schwach: es wiederholt sich.", "Das reicht. Länger ist besser.", "Gut.", "Stark."],
  page: {
    stepForm: "Einrichten", stepDone: "Ersten Host hinzufügen", title: "Fleetban einrichten", lead: "Du wirst Eigentümer dieser Flotte.",
    email: "E-Mail-Adresse", password: "Passwort, mindestens 12 Zeichen", again: "Noch einmal", organisation: "Name der Organisation",
    mode: "Was ein Host sperrt", enforce: "Auf jedem Host sperren", watch: "Nur zeigen, was gesperrt würde",
    modeHint: "Das lässt sich jederzeit ändern. Keins gewählt: wie die Control Plane gestartet wurde (--mode).",
    go: "Einrichten", doneTitle: "Fertig", done: "Du bist Eigentümer und hier angemeldet.", addHost: "Ersten Host hinzufügen",
    terminal: "Im Terminal", then: "und dann Hosts aufnehmen:",
  },
};

const get = (id) => document.getElementById(id);
const [token, pin] = location.hash.slice(1).split(".");
const problem = (text) => { get("problem").textContent = text; };
const text = navigator.languages.map((l) => l.split("-")[0]).find((l) => l === "de" || l === "en") === "de" ? german : english;

if (text === german) {
  document.documentElement.lang = "de";
  document.title = german.page.title;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = german.page[element.dataset.t];
}

if (!token) {
  problem(text.notWhole);
  get("button").disabled = true;
}

/** strength is a hint, 0 to 4: how long a password is, and how many different characters it has. The control plane decides. */
function strength(password) {
  if (password.length < 12) return 0;
  const different = new Set(password.toLowerCase()).size;
  if (different < 6) return 1;
  return password.length < 16 ? 2 : password.length < 20 || different < 10 ? 3 : 4;
}

get("password").addEventListener("input", (event) => {
  const password = event.target.value, s = strength(password);
  get("meter").value = s;
  get("strength").textContent = password === "" ? "" : s === 0 ? text.short([...password].length) : text.strengths[s];
});

get("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const email = get("email").value.trim(), password = get("password").value;
  if (password !== get("again").value) {
    problem(text.differ);
    get("again").focus();
    return;
  }
  problem("");
  get("button").disabled = true;
  const mode = new FormData(event.target).get("mode") ?? undefined;
  try {
    const response = await fetch("/fleetban.operator.v1.SetupService/Setup", {
      method: "POST",
      headers: { "Content-Type": "application/json", "Connect-Protocol-Version": "1", "Fleetban-Session": "cookie" },
      body: JSON.stringify({ token, email, password, organisationName: get("organisation").value.trim(), mode }),
    });
    const answer = await response.json();
    if (!response.ok) {
      const fix = (answer.details ?? []).map((d) => d.debug?.fix).find(Boolean);
      problem(answer.message + (fix && !answer.message.includes(fix) ? ": " + fix : "") + ".");
      return;
    }
    // The link is of no use any more, and the back button needn't show it.
    history.replaceState(null, "", location.pathname);
    let login = `fleetban login --url ${location.origin} --email ${answer.person.email}`;
    if (pin) {
      login += " --pin sha256//" + pin.replaceAll("-", "+").replaceAll("_", "/") + "=";
    }
    get("login").textContent = login;
    get("form").hidden = true;
    get("done").hidden = false;
    get("step-form").removeAttribute("aria-current");
    get("step-done").setAttribute("aria-current", "step");
    get("done-title").focus();
  } catch {
    problem(text.silent);
  } finally {
    get("button").disabled = false;
  }
});
