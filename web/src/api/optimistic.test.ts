import { create } from "@bufbuild/protobuf";
import { createRouterTransport } from "@connectrpc/connect";
import { createConnectQueryKey } from "@connectrpc/connect-query";
import { QueryClient } from "@tanstack/react-query";
import { expect, test } from "vitest";
import { ListMembersResponseSchema, MemberService, Role } from "@/gen/fleetban/operator/v1/people_pb";
import { optimistic } from "./optimistic";

function shown() {
  const queries = new QueryClient();
  const queryKey = createConnectQueryKey({ schema: MemberService.method.listMembers, input: {}, transport: createRouterTransport(() => {}), cardinality: "finite" });
  queries.setQueryData(queryKey, create(ListMembersResponseSchema, { members: [{ personId: "a", role: Role.VIEWER }] }));
  return { queries, role: () => queries.getQueryData(queryKey)?.members[0]?.role };
}

const promote = (old: ReturnType<typeof create<typeof ListMembersResponseSchema>>) => ({ ...old, members: old.members.map((m) => ({ ...m, role: Role.ADMIN })) });

test("a change is shown before it is done, and stays", async () => {
  const { queries, role } = shown();
  await optimistic(queries, MemberService.method.listMembers, {}, promote, () => {
    expect(role()).toBe(Role.ADMIN);
    return Promise.resolve();
  });
  expect(role()).toBe(Role.ADMIN);
});

test("a refused change is taken back, and its error told", async () => {
  const { queries, role } = shown();
  await expect(optimistic(queries, MemberService.method.listMembers, {}, promote, () => Promise.reject(new Error("no")))).rejects.toThrow("no");
  expect(role()).toBe(Role.VIEWER);
});
