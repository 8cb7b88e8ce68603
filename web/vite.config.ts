import { fileURLToPath } from "node:url";
import tailwindcss from "@tailwindcss/vite";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `make web-dev` proxies what isn't the console's own to a running control plane; FLEETBAN_URL says which.
const controlPlane = process.env.FLEETBAN_URL ?? "https://localhost:8443";

// What the entry and the overview import anyway.
const libraries = ["react", "react-dom", "scheduler", "use-sync-external-store", "@bufbuild", "@connectrpc"];
const tanstack = ["query-core", "react-query", "router-core", "react-router", "history", "store", "react-store"];
const own = [
  "api/(client|live|may|problem|prove|session|waiting)\\.", "gen/fleetban/v1/", "gen/fleetban/operator/v1/(operator|insight|people)_pb", "i18n/(index|plural|en/first)", "lib/(time|visible)",
  "components/(add-button|address-link|badge|button|empty|event-line|host-state|panel|problem|time|toast)",
];
const first = new RegExp(`/node_modules/(${libraries.join("|")}|@tanstack/(${tanstack.join("|")}))/|/src/(${own.join("|")})`);

export default defineConfig(({ mode }) => ({
  plugins: [react(), tailwindcss()],
  resolve: { alias: { "@": fileURLToPath(new URL("./src", import.meta.url)) } },
  define: { __DESIGN__: JSON.stringify(mode === "development") },
  build: {
    target: "es2022",
    manifest: true,
    sourcemap: false,
    // A data: URL would need an exception in the content security policy.
    assetsInlineLimit: 0,
    // Rejected by the policy as inline script; every browser of the target preloads modules by itself.
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 700,
    // What every visitor loads is one file: it compresses better, and needs one request.
    rolldownOptions: { output: { codeSplitting: { groups: [{ name: "first", test: first }] } } },
  },
  server: {
    port: 5173,
    proxy: {
      "^/(fleetban\\.|auth/|install\\.sh|readyz)": { target: controlPlane, secure: false, changeOrigin: false },
    },
  },
}));
