// drive.mjs SOCKET: a question a line on stdin, `view=lookup&to=…`, after `ready` an answer a line on stdout, both as forms.
import { createInterface } from "node:readline";
import { Refused, Sidetone, Unavailable } from "../../../clients/node/sidetone.mjs";

const sidetone = new Sidetone(process.argv[2]);

async function ask(line) {
  const question = new URLSearchParams(line);
  const call = {};
  for (const name of new Set(question.keys())) call[name] = question.getAll(name);
  const { view: [view], to: [to], include, ...rest } = call;
  try {
    const answer = view === "lookup" ? await sidetone.lookup(to, rest) : await sidetone.resolve(to, rest, { credentials: include !== undefined });
    return {
      kind: "answer", status: answer.status, language: answer.language, label: answer.label, stale: Number(answer.stale),
      prompt_ids: answer.prompt.ids, system: answer.prompt.system ?? "", secret: answer.credentials?.openai?.default ?? "",
    };
  } catch (why) {
    if (why instanceof Refused) return { kind: "refused", status: why.status };
    if (why instanceof Unavailable) return { kind: "unavailable", status: why.status, wait: why.retryAfter };
    throw why;
  }
}

console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  console.log(new URLSearchParams(await ask(line)).toString().replaceAll("+", "%20"));
}
sidetone.close();
