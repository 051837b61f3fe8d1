-- Take what happened to an API's calls in one process; tell it whether calls may start, and how many retries may.
--
-- KEYS  STATE: hash   COUNTS: hash, letter .. number of a bucket of time -> calls
-- ARG   worker   epoch that the report is about   report, rules: as records.py explains them   random: from 0 to 1
--       streak_s, witnesses: the least that a streak must be   doubts_last_s: when doubts that nobody added to are forgotten
--       retries_at_least, retries_of_overloaded: what the budget has in 10 s at least
--       lease_s: how long a prober that says nothing keeps the others from probing
-- Returns state: 0 closed 1 open 2 half-open   epoch   ok and bad within the window   streak, streak_ms, witnesses, doubts
--         probe_in_ms   probes that this worker may make now   retries granted   reason
--
-- Invariants: reports from another epoch do not count. One answered call ends a streak and all doubts. One worker at
-- most probes at a time; one that does not come back within its lease is forgotten; one whose probe failed lets others
-- go first. While more than a twentieth of the calls fail, retries granted within 10 s stay below their share of the
-- calls started and the constant. A call that has nothing in common with those that failed may be a probe within a
-- second; if it fails, the wait for the next probe is unchanged.
-- Versions: workers of several versions share the keys. Fields are read by name and may be missing; an older version
-- leaves unknown fields alone.
-- Time is Redis's; where it is set back, no wait gets longer than the longest there is.
local me, report, rules = ARG.worker, ARG.report, ARG.rules
local function ms(seconds) return math.floor(seconds * 1000 + 0.5) end
local window, lease, first_wait, longest_wait = ms(rules.window_s), ms(ARG.lease_s), ms(rules.probe_s), ms(rules.cap_s)
local longest = longest_wait * 1.2
local CLOSED, OPEN, HALF = 0, 1, 2
local PROBES = 3 -- one by itself, then the others at once
local NEW_AFTER_MS = 500 -- after the last probe, for a class or batch that has not failed
local ASKED_LATELY_MS = 1000 -- workers with a call to try ask twice as often at least

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket, second = math.floor(now * 10 / window), math.floor(now / 1000)

-- o answered, b could not be served, within the window; c started, f failed, r retries, within 10 s
local sum = { o = 0, b = 0, c = 0, f = 0, r = 0 }
local counts = redis.call('HGETALL', COUNTS)
for i = 1, #counts, 2 do
  local kind, at = counts[i]:sub(1, 1), tonumber(counts[i]:sub(2))
  if sum[kind] then
    local latest = (kind == 'o' or kind == 'b') and bucket or second
    if at > latest or at <= latest - 10 then
      redis.call('HDEL', COUNTS, counts[i])
    else
      sum[kind] = sum[kind] + tonumber(counts[i + 1])
    end
  end
end
local function count(kind, at, calls)
  if calls > 0 then
    sum[kind] = sum[kind] + calls
    redis.call('HINCRBY', COUNTS, kind .. at, calls)
  end
end
count('c', second, report.calls)
count('f', second, report.failed)

local s = { state = CLOSED, epoch = 0, streak = 0, since = now, witnesses = 0, doubts = 0, doubts_at = now, waits = 0,
  probe_at = 0, lease = 0, good = 0, closed_at = 0, asked_at = 0, tried_at = 0,
  extra = 0, asker = '', prober = '', loser = '', reason = '' }
local stored = redis.call('HGETALL', STATE)
for i = 1, #stored, 2 do
  local field, value = stored[i], stored[i + 1]
  if type(s[field]) == 'number' then s[field] = tonumber(value) or 0 elseif s[field] then s[field] = value end
end
s.probe_at, s.lease = math.min(s.probe_at, now + longest), math.min(s.lease, now + lease)
for _, field in ipairs({ 'since', 'asked_at', 'tried_at', 'doubts_at' }) do s[field] = math.min(s[field], now) end
if s.streak == 0 then s.witnesses = 0 end
if now - s.doubts_at > ms(ARG.doubts_last_s) then s.doubts = 0 end

local function begin_epoch(state, reason)
  s.state, s.reason, s.epoch = state, reason, s.epoch + 1
  s.streak, s.witnesses, s.doubts, s.good, s.prober = 0, 0, 0, 0, ''
end
local function open(reason)
  begin_epoch(OPEN, reason)
  s.probe_at = now + math.min(longest_wait, first_wait * 2 ^ (s.waits - 1)) * (0.8 + 0.4 * ARG.random)
end
local function close()
  begin_epoch(CLOSED, '')
  s.closed_at, s.loser = now, ''
  for _, field in ipairs(redis.call('HKEYS', COUNTS)) do
    local kind = field:sub(1, 1)
    if kind == 'o' or kind == 'b' then redis.call('HDEL', COUNTS, field) end
  end
  sum.o, sum.b = 0, 0
end

if s.state == CLOSED and ARG.epoch == s.epoch then
  count('o', bucket, report.ok)
  count('b', bucket, report.bad)
  if report.ok > 0 then s.streak, s.witnesses, s.doubts = 0, 0, 0 end
  if report.streak > 0 then
    if s.streak == 0 then s.since = now - ms(report.streak_s) end
    s.streak, s.witnesses = s.streak + report.streak, s.witnesses + report.witnesses
  end
  if report.doubts > 0 then s.doubts, s.doubts_at = s.doubts + report.doubts, now end
  s.doubts = math.max(0, s.doubts - report.settled)
  local all, reason = sum.o + sum.b, nil
  if report.bad > 0 and all >= rules.calls and sum.b >= rules.errors * all then
    reason = sum.b .. ' of ' .. all .. ' calls failed'
  elseif report.streak > 0 and rules.streak > 0 and s.streak >= rules.streak
    and now - s.since >= ms(ARG.streak_s) and s.witnesses >= ARG.witnesses then
    reason = s.streak .. ' calls in a row failed'
  elseif report.doubts > 0 and rules.jobs > 0 and s.doubts > rules.jobs then
    reason = s.doubts .. ' jobs in a row failed'
  end
  if reason then
    -- One that closed just now and did not hold begins with the wait that it ended with.
    s.waits = now - s.closed_at < window and math.max(s.waits, 1) or 1
    open(reason .. ', the last: ' .. report.why)
  end
elseif s.state == HALF and s.prober == me then
  s.good = s.good + report.probes_good
  -- If one was answered the API is up, and another's failure is its job's own, which must not block the others.
  if report.probes_bad > 0 or (report.probes_doubtful > 0 and s.good == 0) then
    local next_at = s.extra == 1 and s.probe_at > now and s.probe_at
    s.waits, s.loser = s.waits + (next_at and 0 or 1), me
    open('the probe failed: ' .. report.why)
    s.probe_at = next_at or s.probe_at
  elseif s.good >= PROBES or (s.good > 0 and not report.probing and (not report.would_probe or report.probes_doubtful > 0)) then
    close()
  elseif not report.probing and report.probes_good == 0 and not report.would_probe then -- its call is gone
    s.state, s.prober = OPEN, ''
  else
    s.lease = now + lease
  end
end

local probes = 0
if report.would_probe and s.state ~= CLOSED and not report.probing then
  local grace = math.min(first_wait, ASKED_LATELY_MS)
  local new = report.probe_is_new and now - s.tried_at >= math.min(first_wait, NEW_AFTER_MS)
  local others = s.asker ~= me and now - s.asked_at <= ASKED_LATELY_MS
  local first = s.loser ~= me or not others or now >= s.probe_at + grace
  if s.state == HALF and s.prober == me then
    probes = s.good > 0 and PROBES - s.good or 1
  elseif (s.state == OPEN and (new or (now >= s.probe_at and first))) or (s.state == HALF and now > s.lease) then
    s.state, s.prober, s.good, probes, s.lease, s.tried_at = HALF, me, 0, 1, now + lease, now
    s.extra = now < s.probe_at and 1 or 0
  end
  if s.loser ~= me then s.asker, s.asked_at = me, now end
end

local allowed = report.retries_wanted
if rules.retry_share < 1 and sum.f > 0.05 * sum.c then
  local least = sum.b > 0.05 * (sum.o + sum.b) and ARG.retries_of_overloaded or ARG.retries_at_least
  allowed = math.max(0, math.floor(rules.retry_share * sum.c + least) - sum.r)
end
local granted = math.min(report.retries_wanted, allowed)
count('r', second, granted)

redis.call('PEXPIRE', COUNTS, math.max(window, 10000) + 1000)
if #stored > 0 or s.state ~= CLOSED or s.streak > 0 or s.doubts > 0 then
  local fields = {}
  for field, value in pairs(s) do
    fields[#fields + 1] = field
    fields[#fields + 1] = type(value) == 'number' and string.format('%.0f', value) or value
  end
  redis.call('HSET', STATE, unpack(fields))
  redis.call('PEXPIRE', STATE, 3600000)
end
local left = s.state == OPEN and math.max(0, s.probe_at - now) or 0
return answer({ state = s.state, epoch = s.epoch, ok = sum.o, bad = sum.b, streak = s.streak,
  streak_ms = math.floor(now - s.since), witnesses = s.witnesses, doubts = s.doubts, probe_in_ms = math.ceil(left),
  probes = probes, retries = granted, reason = s.reason })
