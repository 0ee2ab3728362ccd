// Reads and changes the settings of an account, and reads its history, by the
// service's own client, and holds what that makes of them against its typings
// and its README:
//
//   UPLOAD_POST_API_KEY=… node read.mjs BASE_URL SHAPE
//
// SHAPE is {"settings": key, "events": "array" or "object", "history": key,
// "uploads": how many there are}.
import assert from 'node:assert/strict';
import { UploadPost } from 'upload-post';

const [baseUrl, shape] = [process.argv[2], JSON.parse(process.argv[3])];

function connect(key) {
  const client = new UploadPost(key);
  client.baseUrl = baseUrl;
  return client;
}

function settings(answer) {
  assert.equal(answer.success, true);
  const found = answer[shape.settings];
  assert.ok(found, `there is no ${shape.settings} in ${JSON.stringify(answer)}`);
  assert.equal(typeof found.webhook_url, 'string');
  assert.equal(typeof found.channels, 'object');
  assert.equal(Array.isArray(found.webhook_events), shape.events === 'array');
  assert.equal(typeof found.webhook_events, 'object');
  return found;
}

const client = connect(process.env.UPLOAD_POST_API_KEY);

const before = settings(await client.getNotificationConfig());
assert.equal(before.webhook_url, '');
assert.equal(before.channels.webhook, false);

const change = {
  webhookUrl: 'https://relay.example.com/webhooks/upload-post',
  webhookEvents: ['social_account_disconnected', 'upload_completed'],
  channels: ['webhook'],
  telegramChatId: '42',
};
const changed = settings(await client.updateNotificationConfig(change));
const events = shape.events === 'array' ? changed.webhook_events : Object.keys(changed.webhook_events).filter((name) => changed.webhook_events[name]);
assert.deepEqual([...events].sort(), change.webhookEvents);
assert.equal(changed.webhook_url, change.webhookUrl);
assert.equal(changed.channels.webhook, true);
assert.equal(changed.telegram_chat_id, change.telegramChatId);
assert.match(changed.webhook_secret, /^whsec_/);
assert.deepEqual(settings(await client.getNotificationConfig()), changed);

const limit = 20;
const seen = new Set();
for (let page = 1; page <= Math.ceil(shape.uploads / limit); page++) {
  const history = await client.getHistory({ page, limit });
  assert.equal(history.success, true);
  assert.equal(history.page, page);
  assert.equal(history.total, shape.uploads);
  const rows = history[shape.history];
  assert.ok(Array.isArray(rows), `there is no list ${shape.history} in ${JSON.stringify(history)}`);
  assert.equal(rows.length, Math.min(limit, shape.uploads - (page - 1) * limit));
  for (const row of rows) {
    for (const name of ['platform', 'profile_username', 'media_type', 'upload_timestamp', 'request_id', 'job_id']) {
      assert.equal(typeof row[name], 'string', `${name} of ${JSON.stringify(row)}`);
    }
    assert.equal(typeof row.success, 'boolean');
    assert.equal(typeof row.error_message, row.success ? 'object' : 'string'); // null is an object
    assert.equal(typeof row.post_url, row.success ? 'string' : 'object');
    assert.equal(typeof row.platform_post_id, row.success ? 'string' : 'object');
    assert.ok(!Number.isNaN(Date.parse(row.upload_timestamp)));
    seen.add(row.request_id);
  }
}
assert.equal(seen.size, shape.uploads);
assert.equal((await client.getHistory())[shape.history].length, Math.min(limit, shape.uploads));

// What the service refuses, the client says in the service's words.
await assert.rejects(client.getHistory({ limit: 15 }), { message: 'Upload-Post API error: limit must be one of 10, 20, 50, 100' });
await assert.rejects(connect('another').getNotificationConfig(), { message: 'Upload-Post API error: Invalid API key' });
