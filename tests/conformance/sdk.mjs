// Drives @aws-sdk/client-lambda-microvms, as it is published, for clients.py: a
// line of JSON in asks for one call, a line of JSON out tells how it went.
//
// usage: node sdk.mjs CLIENTS-FOLDER
//
//   {"client": {...}}                          the options of the calls that follow
//   {"op": "GetMicrovm", "input": {...}}       one call
//   {"pages": "ListMicrovms", "input": {...}}  its paginator, to the end
//
// Times are {"$time": seconds} in answers.
import { createRequire } from 'node:module';
import http from 'node:http';
import readline from 'node:readline';

const require = createRequire(process.argv[2] + '/js/package.json');
const sdk = require('@aws-sdk/client-lambda-microvms');
const Client = sdk.LambdaMicrovmsClient;
let client;

function plain(v) {
	if (v instanceof Date)
		return { $time: v.getTime() / 1000 };
	if (Array.isArray(v))
		return v.map(plain);
	if (v && typeof v === 'object')
		return Object.fromEntries(Object.entries(v).map(
			([k, x]) => [k, plain(x)]));
	return v;
}

function configure(options) {
	if (options.socketPath)
		options.requestHandler = {
			httpAgent: new http.Agent({ socketPath: options.socketPath }),
		};
	delete options.socketPath;
	client?.destroy();
	client = new Client(options);
	return {};
}

async function call({ op, input }) {
	const { $metadata, ...out } = await client.send(
		new sdk[op + 'Command'](input));
	return { status: $metadata.httpStatusCode, out: plain(out) };
}

async function pages({ pages, input, pageSize }) {
	const items = [];
	let count = 0;
	for await (const page of sdk['paginate' + pages](
		{ client, pageSize }, input)) {
		count++;
		items.push(...page.items);
	}
	return { status: 200, out: { items: plain(items), pages: count } };
}

function failure(e) {
	const known = sdk[e.name];
	const fields = {};
	for (const k of ['resourceId', 'resourceType', 'serviceCode', 'quotaCode',
		'retryAfterSeconds', 'Type'])
		if (e[k] !== undefined)
			fields[k] = e[k];
	return {
		error: e.name, message: String(e.message), fields,
		// None of these when the client itself refused to send it.
		status: e.$metadata?.httpStatusCode ?? null,
		attempts: e.$metadata?.attempts ?? 0,
		typed: Boolean(known && e instanceof known &&
			e instanceof sdk.LambdaMicrovmsServiceException),
		retryable: Boolean(e.$retryable),
	};
}

for await (const line of readline.createInterface({ input: process.stdin })) {
	const ask = JSON.parse(line);
	let answer;
	try {
		answer = ask.client ? configure(ask.client) :
			ask.op ? await call(ask) : await pages(ask);
	} catch (e) {
		answer = failure(e);
	}
	process.stdout.write(JSON.stringify(answer) + '\n');
}
process.exit(0);
