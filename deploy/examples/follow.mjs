// Follows what happens to the VMs and workers of an Orchard cluster, as JSON, and misses nothing.
//
//     npm install @nats-io/transport-node
//     node follow.mjs LAST-NUMBER-FILE
//
// Says each event as a line of JSON on standard output, and keeps the number of the last one in the file. Started again
// it goes on behind that; without the file it begins with the oldest event that the controller keeps.
//
// The controller and the network may be away for a while. Where trying again does not help, as the account is let in no more
// or may not follow events, it says so and ends with exit code 1: let a supervisor such as systemd start it again.
//
// Environment: ORCHARD_URL, ORCHARD_SERVICE_ACCOUNT_NAME and ORCHARD_SERVICE_ACCOUNT_TOKEN, of an account with the role
// compute:read; ORCHARD_CA names the certificate to trust (controller.crt of the controller's data folder) where no public
// CA vouches for it.

import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { argv, env, exit } from "node:process";
import { setTimeout as pause } from "node:timers/promises";

import { connect } from "@nats-io/transport-node";

const SILENCE = 5_000; // milliseconds without an event, after which the controller is asked whether any was missed
const PATIENCE = 10_000; // milliseconds for an answer
const PAUSE = 500; // milliseconds before the controller is asked again, or connected to
const MOST_WAITING = 10_000; // events that wait to be handled; those beyond are dropped and asked for again

const file = argv[2] ?? fail("usage: node follow.mjs LAST-NUMBER-FILE");
const url = env.ORCHARD_URL ?? fail("ORCHARD_URL is not set");
const user = env.ORCHARD_SERVICE_ACCOUNT_NAME ?? fail("ORCHARD_SERVICE_ACCOUNT_NAME is not set");
const account = user.replaceAll(".", "%2E"); // as a part of a subject

let last = existsSync(file) ? noted(readFileSync(file, "utf8").trim()) : 0;

function fail(what) {
  console.error(what);
  exit(1);
}

function noted(text) {
  if (!/^[0-9]{1,15}$/.test(text)) {
    fail(`${file} holds no number of an event; remove it to begin with the oldest event that is kept`);
  }
  return Number(text);
}

function shutOut(error) {
  fail(`the account ${user} is let in no more, or may not follow events: ${error}`);
}

// What your program does with an event. Should it be killed right here, it gets this event once more.
function handle(event) {
  writeSync(1, `${JSON.stringify(event)}\n`);
}

// From now on `number` is done. Never half written: the file is replaced once the other is on the disk.
function note(number) {
  const written = openSync(`${file}.new`, "w");
  writeSync(written, `${number}\n`);
  fsyncSync(written);
  closeSync(written);
  renameSync(`${file}.new`, file);
  last = number;
}

function take(event) {
  handle(event);
  note(event.number);
}

const client = await connect({
  servers: url,
  user,
  pass: env.ORCHARD_SERVICE_ACCOUNT_TOKEN,
  inboxPrefix: `_INBOX.${account}`, // the only one where this account may be answered
  tls: url.startsWith("tls://") ? { caFile: env.ORCHARD_CA } : undefined,
  reconnectTimeWait: PAUSE,
  maxReconnectAttempts: -1,
  waitOnFirstConnect: true,
}).catch((error) => fail(`cannot connect: ${error}`));

// What the bus says of an account that is let in no more, or has lost the role: it would be silent from then on.
const SHUT_OUT = /permissions violation|authorization violation|user authentication/i;
(async () => {
  for await (const { type, error } of client.status()) {
    if (type === "error" && SHUT_OUT.test(`${error}`)) shutOut(error);
  }
})();
client.closed().then((error) => (error ? shutOut(error) : fail("the connection is closed")));

// An answer of the controller, which may be away for a while.
async function ask(verb, request) {
  for (;;) {
    try {
      const subject = `orchard.v1.api.${account}.${verb}`;
      const reply = await client.request(subject, JSON.stringify(request), { timeout: PATIENCE });
      const answer = reply.json();
      if (answer.ok) return answer.ok;
      if (!["unavailable", "timeout"].includes(answer.error.code)) fail(answer.error.message);
    } catch (error) {
      if (client.isClosed()) fail(`the connection is closed: ${error}`);
      console.error(`waiting for the controller: ${error}`);
    }
    await pause(PAUSE);
  }
}

// Asks for what was missed.
async function catchUp() {
  for (;;) {
    const page = await ask("event.list", { after: last });
    if (page.last < last) fail(`the newest event is #${page.last}, and #${last} was already seen: other data`);
    if (page.first_kept > last + 1 && page.last > last) {
      console.error(`events up to #${page.first_kept - 1} are no longer kept`);
    }
    page.events.forEach(take);
    if (page.next > last) note(page.next);
    if (last >= page.last) return;
  }
}

const waiting = [];
let wake = () => {};
// Numbers run over events of VMs and workers alike, so whoever wants to know that none is missing takes both.
for (const kind of ["vm", "worker"]) {
  client.subscribe(`orchard.v1.events-json.${kind}.>`, {
    callback(error, message) {
      if (error) shutOut(error);
      if (waiting.length < MOST_WAITING) waiting.push(message.json());
      wake();
    },
  });
}
// Asked behind the subscriptions on one connection: what is not in the answer arrives.
await catchUp();
for (;;) {
  if (waiting.length === 0) {
    const silence = new AbortController();
    const arrival = new Promise((done) => (wake = done));
    await Promise.race([arrival, pause(SILENCE, undefined, { signal: silence.signal }).catch(() => {})]);
    silence.abort();
  }
  const event = waiting.shift();
  if (event?.number === last + 1) take(event);
  else if (!event || event.number > last) await catchUp();
}
