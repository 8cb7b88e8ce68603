import { ConnectError, type Interceptor } from "@connectrpc/connect";
import { Reason } from "@/gen/fleetban/v1/error_pb";
import { SessionService } from "@/gen/fleetban/operator/v1/people_pb";
import { problemOf } from "./problem";

// What changes people, tokens and second factors asks for a proof that is new. Wherever it is asked for, one dialog takes
// it, and the call is made again: what was refused for that wasn't done.

let ask: (() => Promise<boolean>) | undefined;

/** onProof says who asks the person; true where they have proved who they are. It returns how to say that nobody does. */
export function onProof(asker: () => Promise<boolean>): () => void {
  ask = asker;
  return () => {
    if (ask === asker) ask = undefined;
  };
}

let asking: Promise<boolean> | undefined;

/** proving has the person asked where a call needs it, once for calls that come together. */
export const proving: Interceptor = (next) => async (request) => {
  try {
    return await next(request);
  } catch (err) {
    if (request.stream || !ask || request.method === SessionService.method.prove) throw err;
    if (problemOf(ConnectError.from(err)).reason !== Reason.PROOF_NEEDED) throw err;
    asking ??= ask().finally(() => {
      asking = undefined;
    });
    if (!(await asking)) throw err;
    return await next(request);
  }
};
