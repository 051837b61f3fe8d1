-- Take what happened to an API's calls in one process; tell it whether calls may start, and how many retries may.
--
-- KEYS  1 hash of the state   2 hash of counts: letter .. number of a bucket of time -> calls
-- ARGV  1 worker   2 epoch that 3 to 7 belong to   3 calls answered   4 calls failed   5 failures since the last answer
--       6 ms since the first of those   7 what the last one was
--       8 calls started   9 calls that may be repeated   10 retries wanted
--       11 probes answered   12 probes failed   13 whether probes are under way here   14 whether a call waits here
--       15 random number from 0 to 1
--       16 share of failures that opens   17 calls that tell something   18 ms of the window   19 streak that opens, 0: none
--       20 ms that a streak must last   21 ms until the first probe   22 ms until any probe at most
--       23 share of retries, 1: any   24 retries in 10 s at least   25 ms of a prober's lease
-- Returns {state 0 closed 1 open 2 half-open, epoch, calls answered in the window, failed, streak, its age in ms,
--          ms until the next probe, calls that this worker may try now, retries granted, reason}.
--
-- Invariants: what belongs to another epoch counts nothing. One worker at most probes at a time; one that does not come back
-- within its lease is forgotten. While more than a twentieth of the calls fail, retries granted within 10 s stay below their
-- share of the calls started and the constant.
-- Time is Redis's; where it is set back, no wait gets longer than the longest there is.
local STATE, COUNTS = KEYS[1], KEYS[2]
local n = {}
for i = 2, #ARGV do n[i] = tonumber(ARGV[i]) end
local me, why, random, window = ARGV[1], ARGV[7], n[15], n[18]
local longest, lease = n[22] * 1.2, n[25]
local CLOSED, OPEN, HALF = 0, 1, 2
local PROBES = 3 -- one by itself, then the others at once

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket, second = math.floor(now * 10 / window), math.floor(now / 1000)

-- o answered, b failed, within the window; c started, f failed, r retries, within 10 s
local sum = { o = 0, b = 0, c = 0, f = 0, r = 0 }
local counts = redis.call('HGETALL', COUNTS)
for i = 1, #counts, 2 do
  local kind, at = counts[i]:sub(1, 1), tonumber(counts[i]:sub(2))
  local latest = (kind == 'o' or kind == 'b') and bucket or second
  if at > latest or at <= latest - 10 then
    redis.call('HDEL', COUNTS, counts[i])
  else
    sum[kind] = sum[kind] + tonumber(counts[i + 1])
  end
end
local function count(kind, at, calls)
  if calls > 0 then
    sum[kind] = sum[kind] + calls
    redis.call('HINCRBY', COUNTS, kind .. at, calls)
  end
end
count('c', second, n[8])
count('f', second, n[9])

local h = redis.call('HMGET', STATE, 'state', 'epoch', 'streak', 'since', 'waits', 'probe_at', 'prober', 'lease', 'good',
  'closed_at', 'reason')
local state, epoch, streak, since = tonumber(h[1] or CLOSED), tonumber(h[2] or 0), tonumber(h[3] or 0), tonumber(h[4] or now)
local waits, prober, good, closed_at, reason = tonumber(h[5] or 0), h[7], tonumber(h[9] or 0), tonumber(h[10] or 0), h[11] or ''
local probe_at, leased_until = math.min(tonumber(h[6] or 0), now + longest), math.min(tonumber(h[8] or 0), now + lease)
since = math.min(since, now)

local function open(text)
  state, epoch, streak, good, prober, reason = OPEN, epoch + 1, 0, 0, '', text
  probe_at = now + math.min(n[22], n[21] * 2 ^ (waits - 1)) * (0.8 + 0.4 * random)
end
local function close()
  state, epoch, streak, good, prober, reason, closed_at = CLOSED, epoch + 1, 0, 0, '', '', now
  for _, field in ipairs(redis.call('HKEYS', COUNTS)) do
    local kind = field:sub(1, 1)
    if kind == 'o' or kind == 'b' then redis.call('HDEL', COUNTS, field) end
  end
  sum.o, sum.b = 0, 0
end

if state == CLOSED and n[2] == epoch then
  count('o', bucket, n[3])
  count('b', bucket, n[4])
  if n[3] > 0 then streak = 0 end
  if n[5] > 0 then
    if streak == 0 then since = now - n[6] end
    streak = streak + n[5]
  end
  local all = sum.o + sum.b
  local share = sum.b > 0 and all >= n[17] and sum.b >= n[16] * all
  if n[4] > 0 and (share or (n[19] > 0 and streak >= n[19] and now - since >= n[20])) then
    -- One that closed just now and did not hold begins with the wait that it ended with.
    waits = now - closed_at < window and math.max(waits, 1) or 1
    open(share and sum.b .. ' of ' .. all .. ' calls failed, the last: ' .. why
      or streak .. ' calls in a row failed, the last: ' .. why)
  end
elseif state == HALF and prober == me then
  good = good + n[11]
  if n[12] > 0 then
    waits = waits + 1
    open('the probe failed: ' .. why)
  elseif good >= PROBES or (good > 0 and n[13] == 0 and n[14] == 0) then
    close()
  elseif n[13] == 0 and n[11] == 0 and n[14] == 0 then -- its call is gone
    state, prober = OPEN, ''
  else
    leased_until = now + lease
  end
end

local probes = 0
if n[14] == 1 and state ~= CLOSED and n[13] == 0 then
  if state == HALF and prober == me then
    probes = good > 0 and PROBES - good or 1
  elseif (state == OPEN and now >= probe_at) or (state == HALF and now > leased_until) then
    state, prober, good, probes, leased_until = HALF, me, 0, 1, now + lease
  end
end

local granted, allowed = 0, n[10]
if n[23] < 1 and sum.f > 0.05 * sum.c then
  allowed = math.max(0, math.floor(n[23] * sum.c + n[24]) - sum.r)
end
granted = math.min(n[10], allowed)
count('r', second, granted)

redis.call('PEXPIRE', COUNTS, math.max(window, 10000) + 1000)
if h[1] or state ~= CLOSED or streak > 0 then
  redis.call('HSET', STATE, 'state', state, 'epoch', epoch, 'streak', streak, 'since', string.format('%.0f', since),
    'waits', waits, 'probe_at', string.format('%.0f', probe_at), 'prober', prober or '',
    'lease', string.format('%.0f', leased_until), 'good', good, 'closed_at', string.format('%.0f', closed_at),
    'reason', reason)
  redis.call('PEXPIRE', STATE, 3600000)
end
local left = state == OPEN and math.max(0, probe_at - now) or 0
return { state, epoch, sum.o, sum.b, streak, math.floor(now - since), math.ceil(left), probes, granted, reason }
