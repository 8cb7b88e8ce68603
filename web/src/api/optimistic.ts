import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { createConnectQueryKey } from "@connectrpc/connect-query";
import type { QueryClient } from "@tanstack/react-query";

/**
 * optimistic shows what a change will come to before it is done, wherever the answer of `method` is shown, and shows what was
 * there again where it is refused. Either way it is read anew then. The error is the caller's to tell.
 */
export async function optimistic<I extends DescMessage, O extends DescMessage, T>(
  queries: QueryClient,
  method: DescMethodUnary<I, O>,
  input: MessageInitShape<I>,
  change: (shown: MessageShape<O>) => MessageShape<O>,
  work: () => Promise<T>,
): Promise<T> {
  // Of any transport: there is one.
  const queryKey = createConnectQueryKey({ schema: method, input, cardinality: "finite" });
  // What is being read now was asked before the change.
  await queries.cancelQueries({ queryKey });
  const before = queries.getQueriesData<MessageShape<O>>({ queryKey });
  queries.setQueriesData<MessageShape<O>>({ queryKey }, (shown) => shown && change(shown));
  try {
    return await work();
  } catch (err) {
    for (const [key, data] of before) queries.setQueryData(key, data);
    throw err;
  } finally {
    void queries.invalidateQueries({ queryKey });
  }
}
