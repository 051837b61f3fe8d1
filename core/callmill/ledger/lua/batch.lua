-- Shared by every script of the ledger: the keys of one batch, the clock, a chunk's state, the end of a batch.
-- KEYS of every script begin with SHARED, as keys.shared() has it: those of BatchKeys.all(), then DUE, LINES, RESUMED,
-- CONTROLS, OPEN. From OWN on come those that the script names.
local META, CHUNKS, STATE, DONE, FAILED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local REST, PARKED, OUT, LATENCY, RATE = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local FAILURES, SUSPECTS, BATCH_KEYS = KEYS[11], KEYS[12], 12
local DUE, LINES, RESUMED, CONTROLS, OPEN, OWN = KEYS[13], KEYS[14], KEYS[15], KEYS[16], KEYS[17], 18

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_us = time[1] * 1000000 + time[2]
local now_s = tonumber(time[1])

local function int(x) return string.format('%.0f', x) end  -- tostring() keeps 14 digits only

-- A chunk's state. status: Q queued, L leased, W waiting for its due time, P parked, D done with failures.
local function read_state(number)
  local text = redis.call('HGET', STATE, number)
  if not text then return nil end
  local fence, status, worker, count, done, failed, claims =
    string.match(text, '^(%d+)|(%a)|([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)$')
  return {
    fence = tonumber(fence), status = status, worker = worker, count = tonumber(count),
    done = tonumber(done), failed = tonumber(failed), claims = tonumber(claims),
  }
end

local function write_state(number, s)
  redis.call('HSET', STATE, number, table.concat(
    {int(s.fence), s.status, s.worker, int(s.count), int(s.done), int(s.failed), int(s.claims)}, '|'))
end

-- The line of a chunk, from its member.
local function line_of(member) return string.match(member, '([^/]*)$') end

-- Queues a chunk, and tells workers of its line: they know of an API's own line only.
local function enqueue(queued, member)
  redis.call('ZADD', queued, int(now_ms), member)
  local line = line_of(member)
  if string.find(line, '@', 1, true) then redis.call('ZADD', LINES, int(now_ms), line) end
end

local function control() return redis.call('HGET', META, 'control') end

-- Ends the batch when nothing of it can change any more: no lease out, and everything recorded or the rest cancelled.
-- Marks the stream, so that readers stop at once, and starts the retention.
local function end_if_over()
  local m = redis.call('HMGET', META, 'phase', 'control', 'total', 'succeeded', 'failed', 'leased', 'ended_ms', 'retention_ms')
  if not m[1] or m[7] or tonumber(m[6]) > 0 then return false end
  local recorded = tonumber(m[4]) + tonumber(m[5])
  local complete = m[1] == 'sealed' and recorded == tonumber(m[3])
  if not complete and m[2] ~= 'cancelled' then return false end
  redis.call('HSET', META, 'ended_ms', int(now_ms))
  redis.call('XADD', OUT, '*', 'end', complete and 'complete' or 'cancelled')
  for i = 1, BATCH_KEYS do redis.call('PEXPIRE', KEYS[i], m[8]) end
  return true
end

-- Closes a chunk whose jobs are all recorded; its payload stays while some of them failed and may be tried again.
local function close_chunk(number, s, member)
  redis.call('ZREM', DUE, member)
  redis.call('HDEL', DONE, number)
  redis.call('HDEL', REST, number)
  if s.failed > 0 and control() ~= 'cancelled' then
    s.status, s.worker = 'D', ''
    write_state(number, s)
  else
    redis.call('HDEL', STATE, number)
    redis.call('HDEL', CHUNKS, number)
  end
end

-- Puts a chunk that nobody holds where it belongs now: queued (returns 1: publish its hint), parked, closed, or dropped.
local function put_back(number, s, member, queued)
  if s.done == s.count then
    close_chunk(number, s, member)
    return 0
  end
  local c = control()
  redis.call('ZREM', DUE, member)
  if c == 'cancelled' then
    redis.call('HDEL', STATE, number)
    redis.call('HDEL', DONE, number)
    redis.call('HDEL', REST, number)
    return 0
  end
  s.status = c == 'paused' and 'P' or 'Q'
  s.worker = ''
  write_state(number, s)
  if s.status == 'P' then redis.call('ZADD', PARKED, int(now_ms), member) else enqueue(queued, member) end
  return s.status == 'Q' and 1 or 0
end
