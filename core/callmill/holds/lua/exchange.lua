-- Take a process's report about a credential or host of an API; return how many calls it may have in flight.
--
-- KEYS  STATE: hash of the subject with this fingerprint   SHARED: hash of what the API's subjects share
-- ARG   worker   subject   mark: its fingerprint   begins: whether a worker starts   report, rules: as records.py explains them
--       calls_at_once: in flight of a process   processes_at_once: that may have some   lease_ms
-- Returns state: 0 unproven 1 proven 2 held 3 suspected   grant: calls that this worker may have in flight, -1: any
--         next_ms: until it may be tried here, -1: never by itself   line: cause and remedy where held
--
-- Invariants: what has never worked has calls in flight in a limited number of processes. What is held has one trial at a
-- time; a prober that is silent for a lease is forgotten. A process without a call for its grant gives it back at once.
-- Only the API's answers, and people, change the state.
-- Time is Redis's; if it is set back, no wait exceeds the longest allowed.
local me, subject, begins, report, rules, lease = ARG.worker, ARG.subject, ARG.begins, ARG.report, ARG.rules, ARG.lease_ms
local good, hard, soft, streak = report.good, report.hard, report.soft, report.streak
local SUSPECTED_MS, KEPT_MS, PLAIN_ENOUGH, PLAIN_AGAIN_MS, TRIAL_AT_START_MS = 2500, 2592000000, 20, 5000, 30000
local UNLIKE_MS = 1000 -- a class of calls of which none was refused need not wait for longer

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function whole(x) return string.format('%.0f', x) end

local h, leases = {}, {}
local fields = redis.call('HGETALL', STATE)
for i = 1, #fields, 2 do
  local worker = fields[i]:match('^lease:(.*)$')
  if worker then leases[worker] = tonumber(fields[i + 1]) else h[fields[i]] = fields[i + 1] end
end
local function number(field) return tonumber(h[field] or 0) end
local proven, vouched, held = number('proven') == 1, number('vouched') == 1, number('held')
local hards, softs, plains, waits = number('hard'), number('soft'), number('plain'), number('waits')
local suspected, at = math.min(number('suspected'), now + SUSPECTED_MS), number('next')
local tried_at, prober = math.min(number('tried'), now), h.prober or ''
local probing_until = math.min(number('probing'), now + lease)
at = math.min(at, now + math.max(rules.cap_ms, rules.again_ms, TRIAL_AT_START_MS)) -- 0: no automatic trial
local resumed = redis.call('HGET', SHARED, 'resumed:' .. subject) or '0'
if resumed ~= (h.resumed or '0') and held > 0 then -- released by hand, so a 403 is the jobs' own fault
  held, hards, softs, plains, waits, suspected, at, prober, vouched = 0, 0, 0, 0, 0, 0, 0, '', true
end

local function wait()
  if rules.first_ms > 0 then
    at = now + math.min(rules.cap_ms, rules.first_ms * 2 ^ math.min(waits, 20))
  else
    at = proven and now + rules.again_ms or 0
  end
end
local function hold() held, waits, suspected, prober = now, 0, 0, ''; wait() end

if begins and held > 0 then -- whoever starts a worker may have fixed it elsewhere
  local from = rules.first_ms > 0 and now or math.max(now, tried_at + TRIAL_AT_START_MS)
  if at == 0 or at > from then at = from end
  waits = 0
end

if hard + soft + streak > 0 or report.guilty then
  tried_at = now
  if report.cause ~= '' then h.cause, h.remedy = report.cause, report.remedy end
end
if proven and suspected > 0 and now - 1000 * report.good_age_s < suspected - SUSPECTED_MS then good = 0 end -- it was good before
if good > 0 then
  proven, held, hards, softs, plains, waits, suspected, at, prober = true, 0, 0, 0, 0, 0, 0, 0, ''
else
  hards, plains = hards + hard, plains + report.plain
  if not vouched then softs = softs + soft end
  if held > 0 then
    if report.tried and prober == me then
      prober = ''
      if hard + soft > 0 then waits = waits + 1; wait() else at = now + PLAIN_AGAIN_MS end
    end
  elseif proven then
    if rules.streak > 0 and streak >= rules.streak then
      if suspected == 0 and report.asked then -- it was seen to work since: whoever was refused learns so
      elseif suspected == 0 or now > suspected + SUSPECTED_MS then suspected = now + SUSPECTED_MS
      elseif now >= suspected then hards = math.max(hards, streak); hold() end
    end
  elseif hards >= rules.hard or (rules.all > 0 and hards + softs >= rules.all) or report.guilty then
    hold()
  elseif plains >= PLAIN_ENOUGH and plains > 4 * (hards + softs) then
    proven, hards, softs, plains = true, 0, 0, 0
  end
end

local state, grant = 0, 0
if held > 0 then
  state = 2
  if report.trying and prober == me then
    probing_until, grant = now + lease, 1
  elseif report.wants and (at > 0 and now >= at or report.unlike and (proven or report.seen) and now >= tried_at + UNLIKE_MS) and (prober == '' or prober == me or now > probing_until) then
    prober, probing_until, grant = me, now + lease, 1
  elseif prober == me then
    prober = ''
  end
elseif proven then
  state, grant = suspected > now and 3 or 1, -1
elseif report.wants then
  local others = 0
  for worker, ends in pairs(leases) do
    if ends < now or ends > now + lease then
      redis.call('HDEL', STATE, 'lease:' .. worker)
    elseif worker ~= me then
      others = others + 1
    end
  end
  if others < ARG.processes_at_once then
    grant = ARG.calls_at_once
    redis.call('HSET', STATE, 'lease:' .. me, whole(now + lease))
  end
elseif leases[me] then
  redis.call('HDEL', STATE, 'lease:' .. me)
end

redis.call('HSET', STATE, 'proven', proven and 1 or 0, 'vouched', vouched and 1 or 0, 'held', whole(held), 'hard', hards,
  'soft', softs, 'plain', plains, 'waits', waits, 'suspected', whole(suspected), 'next', whole(at), 'tried', whole(tried_at),
  'prober', prober, 'probing', whole(probing_until), 'cause', h.cause or '', 'remedy', h.remedy or '', 'resumed', resumed)
redis.call('PEXPIRE', STATE, KEPT_MS)

local line = ''
if held > 0 then
  line = (subject == 'host' and '' or (hards + softs) .. ' x ') .. (h.cause or '') .. ': ' .. (h.remedy or '')
end
local current = redis.call('HGET', SHARED, 'fp:' .. subject)
if begins or not current then
  current = ARG.mark
  redis.call('HSET', SHARED, 'fp:' .. subject, current)
end
if current == ARG.mark then -- what views show; workers with another secret have their own state
  if held > 0 then
    redis.call('HSET', SHARED, 'held:' .. subject, whole(held) .. ' ' .. whole(at) .. ' ' .. line)
  else
    redis.call('HDEL', SHARED, 'held:' .. subject)
  end
end
local next_at = at
if at > 0 and prober ~= '' and prober ~= me then next_at = math.max(at, probing_until) end -- another one tries it now
return answer({ state = state, grant = grant, next_ms = next_at > 0 and math.max(0, next_at - now) or -1, line = line })
