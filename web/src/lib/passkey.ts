// Passkeys speak JSON with the control plane; the browser turns it into what authenticators want.

/** passkeysWork reports whether this browser can answer with a passkey. */
export function passkeysWork(): boolean {
  return "PublicKeyCredential" in window && "parseRequestOptionsFromJSON" in PublicKeyCredential;
}

function read(options: Uint8Array): { publicKey: never } {
  return JSON.parse(new TextDecoder().decode(options)) as { publicKey: never };
}

function write(credential: Credential | null): Uint8Array<ArrayBuffer> {
  if (!(credential instanceof PublicKeyCredential)) throw new Error("the browser gave no passkey");
  return new TextEncoder().encode(JSON.stringify(credential.toJSON()));
}

/** answerPasskey has the person prove themselves with a passkey; options and answer are JSON in UTF-8. */
export async function answerPasskey(options: Uint8Array): Promise<Uint8Array<ArrayBuffer>> {
  return write(await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(read(options).publicKey) }));
}

/** makePasskey makes a new one. */
export async function makePasskey(options: Uint8Array): Promise<Uint8Array<ArrayBuffer>> {
  return write(await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(read(options).publicKey) }));
}
