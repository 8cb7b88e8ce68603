import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** freePort is a port of the loopback that nobody listens at, nor is given for a connection of their own: below the ports that the kernel hands out. */
function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    server.once("error", (err: NodeJS.ErrnoException) => (err.code === "EADDRINUSE" ? resolve(freePort()) : reject(err)));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(port)));
  });
}

/** says reads what a program prints until something stands there. */
export function says(program: ChildProcess, what: RegExp): Promise<string> {
  return new Promise((resolve, reject) => {
    let said = "";
    const read = (chunk: Buffer) => {
      said += chunk.toString();
      const found = what.exec(said)?.[0];
      if (found) resolve(found);
    };
    program.stdout?.on("data", read);
    program.stderr?.on("data", read);
    program.once("exit", () => reject(new Error(`it ended:\n${said}`)));
  });
}

/** built is where a program of this repository is. */
export const built = (name: string): string => join(dirname(process.env.FLEETBAN_LAB ?? ""), name);

/** stop terminates a program and waits for its end. */
export async function stop(program: ChildProcess): Promise<void> {
  if (program.exitCode !== null || program.signalCode !== null) return;
  const ended = new Promise((resolve) => program.once("exit", resolve));
  program.kill("SIGTERM");
  await ended;
}

/** alone is given a control plane of its own, as `serve` starts it the first time, with the link that it printed; its certificate is nobody's but its own. */
export async function alone(work: (url: string, link: string) => Promise<void>, env: Record<string, string> = {}): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), "fleetban-alone-"));
  const port = await freePort();
  const url = `https://localhost:${port}`;
  const program = spawn(built("fleetban-controlplane"), ["serve", "--data-dir", dir, "--listen", `127.0.0.1:${port}`, "--public-url", url], { env: { ...process.env, ...env } });
  try {
    await work(url, await says(program, /https:\/\/\S+\/setup#fbs_\S+/));
  } finally {
    await stop(program);
    rmSync(dir, { recursive: true, force: true });
  }
}
