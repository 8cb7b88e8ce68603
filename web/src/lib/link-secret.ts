// What stands behind the # of a link that was mailed or shown once: no server's log sees it, and it is taken out of the
// address bar at once, before anything else looks there.

const pages = ["/invitation", "/reset", "/email"];
let secret = "";
if (pages.includes(location.pathname) && location.hash.length > 1) {
  secret = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
}

/** linkSecret is the secret that the page was opened with, "" without one. */
export function linkSecret(): string {
  return secret;
}
