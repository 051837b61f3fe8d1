-- Runs failed jobs of a chunk again.
-- KEYS  SHARED, QUEUED of its line
-- ARG   number of the chunk  member  chosen: bitmap of the jobs; those that did not fail are left alone ('' = all that failed)
-- Returns jobs that run again, hint_wanted: 1: publish it | 0
-- Invariant: counters fall by exactly what becomes unrecorded, and its outcomes are superseded. While a worker holds the
-- chunk nothing becomes unrecorded, because the worker may repeat a bundle whose answer it missed, and must find it
-- recorded; the request is noted instead, and carried out when the chunk is given up.
-- A batch that had ended runs since `again_ms`: times and rates leave out what was before. `again_jobs` counts the jobs that
-- run since then.
local number, member = ARG.number, ARG.member
local function count_again(jobs)
  if redis.call('HEXISTS', META, 'again_ms') == 1 then redis.call('HINCRBY', META, 'again_jobs', jobs) end
end

local s = read_state(number)
local failed = redis.call('HGET', FAILED, number)
if not s or not failed or control() == 'cancelled' then return answer({jobs = 0, hint_wanted = 0}) end
local chosen = ARG.chosen == '' and failed or ARG.chosen

if s.status == 'L' then
  local noted = redis.call('HGET', REST, wanted_field(number)) or ''
  local again, bytes = 0, {}
  for i = 1, #failed do
    local before = string.byte(noted, i) or 0
    local after = bit.bor(before, bit.band(string.byte(failed, i), string.byte(chosen, i) or 0))
    for j = 0, 7 do again = again + bit.band(bit.rshift(after - before, j), 1) end
    bytes[i] = string.char(after)
  end
  if again > 0 then redis.call('HSET', REST, wanted_field(number), table.concat(bytes)) end
  count_again(again)
  return answer({jobs = again, hint_wanted = 0})
end

local again = open_failed(number, s, chosen)
if again == 0 then return answer({jobs = 0, hint_wanted = 0}) end
if redis.call('HDEL', META, 'ended_ms') == 1 then
  redis.call('ZREM', ENDED, batch_id())
  redis.call('ZADD', ACTIVE, int(now_ms), batch_id())
  redis.call('HSET', META, 'again_ms', int(now_ms), 'again_jobs', 0)
end
count_again(again)
for _, key in ipairs(BATCH) do redis.call('PERSIST', key) end
if s.status == 'W' then leave_other_lines(member, QUEUED) end  -- due in another one, where a move was cut off
local queued = 0
if s.status == 'D' or s.status == 'W' then
  queued = put_back(number, s, member, QUEUED)
else
  write_state(number, s)  -- queued or parked as it is
end
return answer({jobs = again, hint_wanted = queued})
