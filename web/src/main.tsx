import "./styles.css";
import "./lib/link-secret";
import { TransportProvider } from "@connectrpc/connect-query";
import { QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { queries } from "./api/client";
import { ask, transport } from "./api/session";
import { TextProvider } from "./i18n";
import { router } from "./router";

void ask().catch(() => setTimeout(() => void ask().catch(() => {}), 2_000));

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <TextProvider>
        <TransportProvider transport={transport}>
          <QueryClientProvider client={queries}>
            <RouterProvider router={router} />
          </QueryClientProvider>
        </TransportProvider>
      </TextProvider>
    </StrictMode>,
  );
}
