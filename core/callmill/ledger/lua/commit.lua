-- Records a bundle of outcomes of one chunk, and finishes the chunk when asked.
-- KEYS  SHARED, QUEUED of its line
-- ARG   number of the chunk  member  fence  bundle ('' = none)  recorded: offsets of the jobs in it  failed: of those among them
--       that failed  failures: what is kept of these, in the same order (as failure_records.py has it)  causes of them -> jobs
--       slowest of the outcomes, ten at most, the slowest first: latency_us, name  latencies: bucket -> calls
--       retries  calls  throttled: calls (429)
--       finish: whether the chunk is given up, and with it: delay_ms of the remainder  rest: what it must know when it runs
--         again ('' = nothing)  deaths that still stand against the chunk
-- Returns the verdict: 'ok': recorded, lease kept | 'done' | 'waiting' | 'queued': publish the hint; with control, and where
--         slowest told of any, floor_us: the latency beyond which a job is one of the slowest
--       | 'stale': the lease is somebody else's now, nothing recorded
--       | 'recorded', with recorded: these offsets stand recorded already, nothing was recorded, send the others
-- Invariant: a job's bit goes from 0 to 1 once, in the same step as its outcome enters the stream and the counters.
-- An entry of the stream has the bundle (b) and the bytes of all bundles up to it (t), of which release.lua makes use.
local number, member = ARG.number, ARG.member
local s = read_state(number)
if not s or s.status ~= 'L' or s.fence ~= ARG.fence then return answer({verdict = 'stale'}) end

if ARG.bundle == '' then though_full() end
local n_done, n_failed = #ARG.recorded, #ARG.failed

local function set_bits(key, offsets, refuse)
  local bits = redis.call('HGET', key, number)
  local bytes, clash = {}, {}
  for i = 1, math.ceil(s.count / 8) do bytes[i] = bits and string.byte(bits, i) or 0 end
  for _, offset in ipairs(offsets) do
    local at, mask = math.floor(offset / 8) + 1, bit.lshift(1, offset % 8)
    if bit.band(bytes[at], mask) ~= 0 then clash[#clash + 1] = offset end
    bytes[at] = bit.bor(bytes[at], mask)
  end
  if refuse and #clash > 0 then return clash end
  for i = 1, #bytes do bytes[i] = string.char(bytes[i]) end
  redis.call('HSET', key, number, table.concat(bytes))
end

-- Adds to what is kept of each failed job: '>I4I2d' of the lengths of head and answer and the time, head, answer; the
-- newest last. A batch of which everything fails keeps the answers of so many jobs only: Redis must hold it.
local ANSWERS_KEPT, FAILURES_KEPT = 100000, 10

local function keep_failures(offsets, records)
  local at, answers = 1, redis.call('HLEN', FAILURES) < ANSWERS_KEPT
  for _, offset in ipairs(offsets) do
    local field = number .. '/' .. int(offset)
    local head, answer, start = struct.unpack('>I4I2', records, at)
    at = start + head + answer
    local kept = answers and answer or 0
    local added = struct.pack(FAILURE_PREFIX, head, kept, now_ms) .. string.sub(records, start, start + head + kept - 1)
    local before = redis.call('HGET', FAILURES, field) or ''
    local starts, from = {}, 1
    while from <= #before do
      starts[#starts + 1] = from
      local h, a, _, next_from = struct.unpack(FAILURE_PREFIX, before, from)
      from = next_from + h + a
    end
    local oldest = starts[math.max(1, #starts - FAILURES_KEPT + 2)] or 1
    redis.call('HSET', FAILURES, field, string.sub(before, oldest) .. added)
  end
end

-- Notes how the counters stand at the beginning of a step of the batch's time. Called when the first bundle of a second
-- comes, before it counts: since the step began nothing was counted. When there are too many steps they become longer,
-- by powers of two: then the counters at the beginning of the first of those that become one are kept.
local STEPS, LOG_RATIO = 240, math.log(1.05)  -- the latter as latency.py has it

local function lengthen_steps(step_s, age_s)
  local longer_s, slots, kept = step_s, {}, {}
  while age_s / longer_s >= STEPS do longer_s = longer_s * 2 end
  local all = redis.call('HGETALL', HISTORY)
  for i = 1, #all, 2 do
    local slot = tonumber(all[i])
    if slot then slots[#slots + 1] = {slot, all[i + 1]} end
  end
  table.sort(slots, function(a, b) return a[1] < b[1] end)
  redis.call('DEL', HISTORY)
  redis.call('HSET', HISTORY, 'step', int(longer_s))
  for _, slot in ipairs(slots) do
    local at = math.floor(slot[1] * step_s / longer_s)
    if not kept[at] then redis.call('HSET', HISTORY, int(at), slot[2]) end
    kept[at] = true
  end
  return longer_s
end

local function note_history()
  local m = read_counters(META)
  local age_s = math.max(0, now_s - math.floor(m.created_ms / 1000))
  local step_s = tonumber(redis.call('HGET', HISTORY, 'step') or 1)
  if age_s / step_s >= STEPS then step_s = lengthen_steps(step_s, age_s) end
  local slot = int(math.floor(age_s / step_s))
  if redis.call('HEXISTS', HISTORY, slot) == 1 then return end
  local timed, latency_us, buckets = 0, 0, redis.call('HGETALL', LATENCY)
  for i = 1, #buckets, 2 do
    local calls = tonumber(buckets[i + 1])
    timed, latency_us = timed + calls, latency_us + calls * math.exp((buckets[i] + 0.5) * LOG_RATIO)
  end
  redis.call('HSET', HISTORY, slot,
    table.concat({int(latency_us), int(timed), m.succeeded, m.failed, m.calls, m.retries, m.throttled}, ' '))
end

local function count_second(jobs)
  local slot = now_s % 64
  local second, count = string.match(redis.call('HGET', RATE, slot) or '', '^(%d+) (%d+)$')
  if tonumber(second) ~= now_s then
    count = 0
    note_history()
  end
  redis.call('HSET', RATE, slot, int(now_s) .. ' ' .. int(count + jobs))
end

local function count_errors(causes)
  for cause, jobs in pairs(causes) do redis.call('HINCRBY', ERRORS, error_field(cause), jobs) end
end

-- Keeps the slowest jobs; returns the latency of the fastest of them, 0 while there is room. It only grows.
local SLOWEST_KEPT = 10

local function keep_slowest()
  local floor_us = tonumber(redis.call('HGET', META, 'slow_us') or 0)
  if ARG.slowest[1].latency_us <= floor_us then return int(floor_us) end
  for _, job in ipairs(ARG.slowest) do redis.call('ZADD', SLOWEST, 'GT', int(job.latency_us), job.name) end
  redis.call('ZREMRANGEBYRANK', SLOWEST, 0, -SLOWEST_KEPT - 1)
  if redis.call('ZCARD', SLOWEST) < SLOWEST_KEPT then return '0' end
  floor_us = math.max(floor_us, tonumber(redis.call('ZRANGE', SLOWEST, 0, 0, 'WITHSCORES')[2]))
  redis.call('HSET', META, 'slow_us', int(floor_us))
  return int(floor_us)
end

local floor_us  -- nil: nothing to tell
if n_done > 0 then
  local clash = set_bits(DONE, ARG.recorded, true)
  if clash then return answer({verdict = 'recorded', recorded = clash}) end
end
if n_done > 0 or ARG.calls > 0 then count_second(n_done) end
if n_done > 0 then
  if n_failed > 0 then
    set_bits(FAILED, ARG.failed, false)
    keep_failures(ARG.failed, ARG.failures)
    count_errors(ARG.causes)
  end
  redis.call('XADD', OUTCOMES, '*', 'b', ARG.bundle, 't', int(count_unread(#ARG.bundle)))
  redis.call('HINCRBY', META, 'succeeded', n_done - n_failed)
  if n_failed > 0 then redis.call('HINCRBY', META, 'failed', n_failed) end
  s.done, s.failed = s.done + n_done, s.failed + n_failed
  if #ARG.slowest > 0 then floor_us = keep_slowest() end
end
if ARG.retries > 0 then redis.call('HINCRBY', META, 'retries', ARG.retries) end
if ARG.calls > 0 then redis.call('HINCRBY', META, 'calls', ARG.calls) end
if ARG.throttled > 0 then redis.call('HINCRBY', META, 'throttled', ARG.throttled) end
for bucket, calls in pairs(ARG.latencies) do redis.call('HINCRBY', LATENCY, bucket, calls) end

if not ARG.finish then
  write_state(number, s)
  return answer({verdict = 'ok', control = control(), floor_us = floor_us})
end

redis.call('HINCRBY', META, 'leased', -1)
s.deaths = ARG.deaths
if s.deaths == 0 then redis.call('HDEL', SUSPECTS, number) end
local delay_ms = run_wanted(number, s) > 0 and 0 or ARG.delay_ms
if s.done == s.count then
  close_chunk(number, s, member)
  end_if_over()
  return answer({verdict = 'done', control = control(), floor_us = floor_us})
end
if ARG.rest ~= '' then redis.call('HSET', REST, number, ARG.rest) end
if delay_ms > 0 and control() == 'run' then
  s.status, s.worker = 'W', ''
  write_state(number, s)
  redis.call('ZREM', DUE, member)
  redis.call('ZADD', DUE, int(now_ms + delay_ms), bound_member(member))
  return answer({verdict = 'waiting', control = control(), floor_us = floor_us})
end
local queued = put_back(number, s, member, QUEUED)
end_if_over()
return answer({verdict = queued == 1 and 'queued' or 'waiting', control = control(), floor_us = floor_us})
