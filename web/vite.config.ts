import { fileURLToPath } from "node:url";
import tailwindcss from "@tailwindcss/vite";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `make web-dev` proxies what isn't the console's own to a running control plane; FLEETBAN_URL says which.
const controlPlane = process.env.FLEETBAN_URL ?? "https://localhost:8443";

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
  },
  server: {
    port: 5173,
    proxy: {
      "^/(fleetban\\.|auth/|install\\.sh|readyz)": { target: controlPlane, secure: false, changeOrigin: false },
    },
  },
}));
