// Lets a test drive a client, in Node and in a page alike: what it is told to do, and what it saw.

/** Start a client; everything that it sees goes to `report` as [kind, facts]. */
export function start(Client, url, report, { tokens, ...options } = {}) {
  const token = tokens && (() => (tokens.length > 1 ? tokens.shift() : tokens[0]));
  const client = new Client(url, { ...options, token });
  const why = () => client.lastError?.code ?? null;
  client.onState((state, info) => report(["state", { state, why: why(), ...info }]));
  client.onLost((room, lost) => report(["lost", { room, ...lost }]));
  client.onError((error) => report(["error", { code: error.code, text: String(error) }]));
  client.on("*", (message) => void report(["message", message]));
  client.on("ask", ({ data }) => ({ got: data }));
  client.on("refuse", () => {
    throw new Error("I won't");
  });
  client.connect();
  return async (name, args) => {
    try {
      const found = typeof client[name] === "function" ? await client[name](...args) : client[name];
      return { found: found === client ? null : (found ?? null) };
    } catch (error) {
      return { code: error.code ?? null, error: String(error) };
    }
  };
}
