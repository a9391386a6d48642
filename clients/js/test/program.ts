// A program that uses what is declared; the compiler has to accept it.

import {
  Client,
  EyewallError,
  Joined,
  Message,
  Position,
  State,
  backoff,
  comesBack,
  connect,
} from "../eyewall.js";

interface Said {
  text: string;
}

const client: Client = connect("wss://hub.example/ws", {
  token: async () => ({ token: "t", expires_in: 60 }),
  outbox: 10,
});
const off: () => void = client.on<Said>("room:general", ({ data, stream }) => {
  const text: string = data.text;
  const place: Position | undefined = stream;
  return { text, place };
});
client.off("chat:*", (message: Message) => message.topic);
client.onState((state: State, info) => info.delay ?? state.length);
client.onLost((room, lost) => room + (lost.code ?? lost.offset));
client.onError((error) => error instanceof EyewallError && error.retryAfter);
client.send("chat:say", { text: "hi" }, { event: "said" });

async function use(): Promise<number> {
  if (client.lastError?.code === "unauthorized") client.setToken(async () => ({ token: "t2" }));
  client.setToken("t3");
  await client.ready();
  const joined: Joined = await client.join("general", { timeout: 3 });
  const caught: Joined = await client.join("general", { since: "start" });
  const place: Position = { epoch: "e", offset: 3 };
  for (const since of [5, place, null, "start" as const]) await client.join("r", { since });
  const { echo, message_id } = await client.request<{ echo: string }>("echo", "hi");
  const { members, cursor } = await client.members("general", { limit: 10 });
  const { users } = await client.presence(["ada"]);
  await client.presence({ room: "general" });
  await client.typing("general", true, { ttl: 3, signal: AbortSignal.timeout(10) });
  const { messages } = await client.history("general", { since: { epoch: "e", offset: 3 } });
  await client.publish("general", { text: "hi" }, { event: "said" });
  await client.leave("general");
  off();
  client.close();
  const words = [echo, message_id, cursor, members[0].role, users.ada.last_seen, messages[0].topic];
  return words.length + joined.members + Number(caught.recovered) + backoff(1) + Number(comesBack(1006));
}

// @ts-expect-error: a topic is a string
client.send(7);
// @ts-expect-error: only the start has a name
client.join("r", { since: "end" });
// @ts-expect-error: the state is nobody else's to set
client.state = "open";

export default use;
