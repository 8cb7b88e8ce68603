import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, Reason } from "@/gen/fleetban/v1/error_pb";

/** What went wrong, and what to do about it, as the control plane said. */
export interface Problem {
  message: string;
  fix: string;
  reason: number;
  code: Code;
  /** The call's id, for who looks into the control plane's log. */
  request: string;
  /** Trying again may help by itself. */
  passing: boolean;
  /** The approval that it waits for; "" where it waits for none. */
  approval: string;
}

/** problemOf reads any error of a call. */
export function problemOf(err: unknown): Problem {
  const error = ConnectError.from(err);
  const [info] = error.findDetails(ErrorInfoSchema);
  return {
    message: error.rawMessage,
    fix: info?.fix ?? "",
    reason: info?.reason ?? 0,
    code: error.code,
    request: info?.requestId ?? "",
    passing: error.code === Code.Unavailable || error.code === Code.DeadlineExceeded || error.code === Code.ResourceExhausted,
    approval: info?.reason === Reason.APPROVAL_REQUIRED ? info.subject : "",
  };
}
