import { expect, test } from "vitest";
import { prefixOfBytes } from "./packed";

const v6 = (groups: number[], bits: number) => new Uint8Array([...groups.flatMap((g) => [g >> 8, g & 255]), bits]);

test("packed prefixes are written as people write them", () => {
  expect(prefixOfBytes(new Uint8Array([203, 0, 113, 9, 32]))).toBe("203.0.113.9");
  expect(prefixOfBytes(new Uint8Array([203, 0, 113, 0, 24]))).toBe("203.0.113.0/24");
  expect(prefixOfBytes(v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 64))).toBe("2001:db8::/64");
  expect(prefixOfBytes(v6([0x2001, 0xdb8, 0, 1, 0, 0, 0, 1], 128))).toBe("2001:db8:0:1::1");
  expect(prefixOfBytes(v6([0, 0, 0, 0, 0, 0, 0, 1], 128))).toBe("::1");
  expect(prefixOfBytes(v6([1, 0, 2, 3, 4, 5, 6, 7], 128))).toBe("1:0:2:3:4:5:6:7");
  expect(prefixOfBytes(new Uint8Array([1, 2]))).toBe("?");
});
