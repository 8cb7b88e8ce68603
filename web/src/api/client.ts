import { Code, ConnectError } from "@connectrpc/connect";
import { QueryClient } from "@tanstack/react-query";

/** queries caches what was read. What is on the screen is read anew when an event says that it changed. */
export const queries = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5_000,
      refetchOnWindowFocus: true,
      retry: (count, err) => {
        const code = ConnectError.from(err).code;
        return count < 3 && (code === Code.Unavailable || code === Code.Unknown || code === Code.DeadlineExceeded);
      },
    },
  },
});
