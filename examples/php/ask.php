<?php
// Ask llm-routerd with phpredis: php ask.php ["a prompt" [id]]
//
// Exit code: 0 a result, 1 an error, 2 a cancellation, 69 no Redis for half a minute.

declare(strict_types=1);

const EXIT_CODES = ['result' => 0, 'error' => 1, 'cancelled' => 2]; // the final events
const BLOCK_MS = 5000;
const TRIES = 30;

function connect(): Redis
{
    $url = parse_url(getenv('REDIS_URL') ?: 'redis://127.0.0.1:6379/0');
    $redis = new Redis();
    $redis->connect($url['host'], $url['port'] ?? 6379, 5.0);
    $redis->setOption(Redis::OPT_READ_TIMEOUT, 2 * BLOCK_MS / 1000);
    $redis->setOption(Redis::OPT_MAX_RETRIES, 0);
    if (isset($url['pass'])) {
        $redis->auth(array_map('urldecode', array_filter([$url['user'] ?? '', $url['pass']])));
    }
    $redis->select((int) ltrim($url['path'] ?? '', '/'));
    return $redis;
}

/** Repeats a command while Redis is away. An XADD too: two entries with one id are one request. */
function patiently(callable $command): mixed
{
    static $redis = null;
    for ($tries = 0; $tries < TRIES; $tries++) {
        try {
            $redis ??= connect();
            $redis->clearLastError();
            $reply = $command($redis);
            if ($reply === false && $redis->getLastError() !== null) {
                fwrite(STDERR, $redis->getLastError() . "\n");
                exit(1);
            }
            return $reply;
        } catch (RedisException $error) {
            $redis = null;
            fwrite(STDERR, "[{$error->getMessage()}; trying again]\n");
            sleep(1);
        }
    }
    exit(69);
}

/** Yields each event's attempt, type and data; goes on from the last ID seen, and ends after the final event. */
function follow(string $id): Generator
{
    $key = "llm:events:$id";
    $lastId = '0';
    while (true) {
        $reply = patiently(fn (Redis $redis) => $redis->xRead([$key => $lastId], -1, BLOCK_MS));
        foreach ($reply[$key] ?? [] as $lastId => $fields) {
            yield [(int) $lastId, $fields['type'], json_decode($fields['data'], true)];
            if (isset(EXIT_CODES[$fields['type']])) {
                return;
            }
        }
    }
}

$prompt = $argv[1] ?? 'Why is the sky blue?';
$id = $argv[2] ?? bin2hex(random_bytes(16));
$request = ['id' => $id, 'prompt' => $prompt, 'stream' => 'true'];
patiently(fn (Redis $redis) => $redis->xAdd('llm:requests', '*', $request));

$shown = null; // the attempt whose text is on the screen
foreach (follow($id) as [$attempt, $type, $data]) {
    $other = in_array($type, ['rejected', 'attempt'], true) || ($type === 'result' && $data['attempt'] !== $shown);
    if ($shown !== null && $other) {
        echo "\n[discarded]\n";
        $shown = null;
    }
    if ($type === 'token') {
        echo $data['text'];
        $shown = $attempt;
    } elseif ($type === 'result') {
        echo ($shown === null ? $data['raw_text'] : '') . "\n";
    } elseif (isset(EXIT_CODES[$type])) {
        fwrite(STDERR, "\n$type: " . ($data['message'] ?? $data['reason'] ?? '') . "\n");
    }
}
exit(EXIT_CODES[$type]);
