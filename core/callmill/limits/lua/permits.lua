-- Lease concurrency permits to one worker: take, renew, give back.
--
-- KEYS  EXPIRY: zset worker -> lease end us   HELD: hash worker -> permits held   WANT: hash worker -> permits wanted
--       WAITING: zset of workers that wait for a single permit (FIFO)   USED: hash worker -> permits in use   META: hash
--       LIMITER: meta hash of the limiter
-- ARG   scope: what the permits are of, '' the API   worker   want: permits wanted   used: permits in use
--       held: permits at the last reply   lease_us   limit that is configured, 0: none   channel
--       answers since the last renewal, where a limit that nobody wrote down is found: count, sum_us of their latencies,
--         squares of these; else nil   kept_ms: how long the keys are kept if unused
-- Returns held: permits this worker holds now   goal: how many it should come down to   unmet: workers that lack permits
--         limit in force   searching: 1 while it is being searched for, else 0   wait_us: nobody gets more before
-- What is in use is held until it is given back; starting no call above the goal brings it there. Wanting and using none ends
-- the lease.
--
-- Invariant: the permits of all live leases never exceed the limit, but where more calls are already in flight (a lowered
-- limit). After lost state, and on a server that took over and may have missed the latest leases, everybody keeps what he had
-- and nobody gets more, until all have been called on the channel and had time to come.
-- Time follows Redis TIME and never goes back, nor does it stand still when TIME does go back.
local me, want, used, lease, limit = ARG.worker, ARG.want, ARG.used, ARG.lease_us, ARG.limit
local meta = read_meta(META)
if tonumber(meta.format or 1) > FORMAT then return redis.error_reply('NEWERFORMAT ' .. meta.format) end
local last, skew, born = tonumber(meta.now or 0), tonumber(meta.skew or 0), tonumber(meta.born or 0)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] + skew
if now < last then skew, now = skew + last - now, last end

local info = redis.pcall('INFO', 'server') -- where it is not allowed, only an empty state is noticed
local server = type(info) == 'string' and info:match('run_id:(%w+)') or ''
local configured = limit > 0
if born == 0 or meta.server ~= server then
  born = configured and now or 1 -- what is learned is no promise: nobody has to wait for others
  redis.call('DEL', EXPIRY, HELD, WANT, WAITING, USED)
  redis.call('PUBLISH', ARG.channel, ARG.scope == '' and 'boot' or 'boot ' .. ARG.scope)
end
redis.call('HSET', META, 'format', FORMAT, 'now', string.format('%.0f', now), 'skew', string.format('%.0f', skew),
  'born', string.format('%.0f', born), 'server', server)

local function forget(worker)
  redis.call('ZREM', EXPIRY, worker)
  redis.call('HDEL', HELD, worker)
  redis.call('HDEL', WANT, worker)
  redis.call('HDEL', USED, worker)
  redis.call('ZREM', WAITING, worker)
end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', now)) do forget(dead) end

local mine, others, unmet, wants, wishes, wanted_before = 0, 0, 0, { want }, {}, 0
local held, all = {}, redis.call('HGETALL', HELD)
for i = 1, #all, 2 do
  held[all[i]] = tonumber(all[i + 1])
  if all[i] == me then mine = held[me] else others = others + held[all[i]] end
end
all = redis.call('HGETALL', WANT)
for i = 1, #all, 2 do
  if all[i] ~= me then
    wants[#wants + 1] = tonumber(all[i + 1])
    wishes[all[i]] = wants[#wants]
    if wants[#wants] > (held[all[i]] or 0) then unmet = unmet + 1 end
  else
    wanted_before = tonumber(all[i + 1])
  end
end

local searching = 0
local answers = ARG.answers
if answers then
  local x = in_flight.read(META, now, LIMITER)
  if x.most == 0 then in_flight.begin(x) end
  local wanted = 0
  for _, wish in ipairs(wants) do wanted = wanted + wish end
  in_flight.take(x, answers.count)
  if wanted > x.most and x.full == 1 then
    in_flight.raise(x, answers.count, answers.sum_us, answers.squares)
  elseif (wanted > x.most) ~= (x.full == 1) then
    in_flight.fill(x, wanted > x.most)
  end
  limit, searching = configured and math.min(limit, x.most) or x.most, x.mode == 'hold' and 0 or 1
end

local room = math.max(0, limit - others) -- the most this worker may hold
local function fair_share() -- max-min fairness: who wants less than an equal part gets it, the rest is parted again
  table.sort(wants)
  local left = limit
  for i, wish in ipairs(wants) do
    local equal = left / (#wants - i + 1)
    if wish > equal then return equal end
    left = left - wish
  end
  return math.huge
end
local function lacking(part) -- permits that others lack of this part
  local count = 0
  for worker, wish in pairs(wishes) do count = count + math.max(0, math.min(wish, part) - (held[worker] or 0)) end
  return count
end
local fair, goal, wait = fair_share(), want, 0
local whole = math.floor(math.min(fair, want))
if configured and now < born + lease / 10 then
  goal, wait = ARG.held, born + lease / 10 - now -- others may still be at work on leases that nobody remembers
elseif fair < 1 and want > 0 then -- fewer permits than workers: one each, in turn
  if used > 0 then
    goal = unmet > 0 and 0 or used
  else
    redis.call('ZADD', WAITING, 'NX', now, me)
    goal = redis.call('ZRANK', WAITING, me) < room and 1 or 0
  end
elseif unmet > 0 then
  goal = whole
  if whole < want and whole < fair and room - lacking(whole) > whole then goal = whole + 1 end -- what equal parts leave over
end
goal = math.min(goal, room)
if goal < want and wanted_before <= mine and others > 0 then -- it begins to lack what others may hold in vain
  redis.call('PUBLISH', ARG.channel, 'lack ' .. (ARG.scope == '' and '-' or ARG.scope))
end
mine = math.max(used, goal) -- what is in use is in use

if want == 0 and mine == 0 then
  forget(me)
else
  redis.call('HSET', HELD, me, mine)
  redis.call('HSET', WANT, me, want)
  redis.call('HSET', USED, me, used)
  redis.call('ZADD', EXPIRY, now + lease, me)
  if mine > 0 then redis.call('ZREM', WAITING, me) end
end
for _, key in ipairs({ EXPIRY, HELD, WANT, WAITING, USED, META }) do redis.call('PEXPIRE', key, ARG.kept_ms) end
return answer({ held = mine, goal = goal, unmet = unmet, limit = limit, searching = searching, wait_us = math.ceil(wait) })
