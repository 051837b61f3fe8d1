-- Grant start times for the next calls of one worker, all-or-nothing over every limit that holds for them; settle costs.
--
-- The calls of one request belong to one group: one class of traffic, one model. Each may use any of the API's keys
-- (credentials); it gets the one with which it can start first.
--
-- KEYS  META   CLASSES: zset of those seen lately   WORKERS: zset of the class's workers seen lately   QUEUE: zset of its
--       workers that wait (FIFO)   LIMITS: one hash per limit
-- ARG   worker   channel   horizon_us   longest_cold_wait_us   traffic: the class   weight of it, as text
--       owners: for each limit the key that it belongs to (0: it holds for all calls, -1: for all of this model)
--       scopes: the names of the model and of each key, as pauses know them ('' none)
--       request:
--         boot: id of the life that it knows ('' none)   seq: the exchange that it knows
--         latest_us: from now to the latest start it was granted   heaviest: how many requests its heaviest start counted as
--           that may keep a limit busy   lead_us: no start sooner than this   guard_us: what it needs
--         doubt: 'stepped': it saw TIME jump ahead; 'rules': other limits hold since its last request; 'look': this may be
--           another server; else ''
--         settlements, each: key (0: whichever)   since_us: from now to the earliest start it belongs to
--           dearer: units used beyond what was reserved, by column   unused: units reserved and not used, by column
--         leaves: whether this worker will ask for no more calls of this group
--         allowances: how many of the calls may use each key   taken: how many calls the API took lately with each; or none
--         calls: how many wait (0: only settle and look)   costs of each, by column: requests, tokens, input tokens, output
--           tokens; none where each is one request
-- Returns now_us, boot, seq   again_us: until it may ask again   by: place of the limit that holds it back in LIMITS, or 0
--         pause_us that is left, and pause_reason   guard_us in force   starts_us: offsets of the granted starts from now
--         keys: of each   scopes: us of pause left, and the reason, of the model, then of each key
--         upcoming_us: until the first start that was not granted, or -1; {'unconfigured'} where a limit is unknown.
--
-- Invariants: those of paces and quotas; nothing is charged unless a start is granted; after lost or regressed state the
-- first start is a cold wait away; a class below its share may book twice as far ahead as the others, and a class above it
-- only a little, so that shares follow weights while all want more, and what one leaves is free for all.
local request, me, class, scopes, horizon = ARG.request, ARG.worker, ARG.traffic, ARG.scopes, ARG.horizon_us
local known_boot, lead, n, costs, allowed = request.boot, request.lead_us, request.calls, request.costs, request.allowances
local key_count, alike = #allowed, #costs == 0
local LOOK_US = 5000000 -- what may end sooner than it seems is looked at so often
local DRIFT = 1e-4 -- how fast what is known of the server's windows blurs
-- What nobody uses is forgotten: what belongs to a class soon, to a model in an hour at least, the rest in a month.
local CLASS_KEPT_MS, MODEL_KEPT_MS, KEPT_MS = 60000, 3600000, 2764800000
local MOST_GONE = 100 -- classes that are forgotten in one exchange
local FAR = 4 -- and one with less than its share, in calls that cost as much as the dearest
local NEAR_US = 60000 -- how far ahead a class may book that has more than its share

local function cost(x, k)
  if alike then return x.column == 1 and 1 or 0 end
  return costs[k < n and k or n][x.column]
end

local v_field = 'v:' .. class
local of_scopes = { v_field }
for _, scope in ipairs(scopes) do
  of_scopes[#of_scopes + 1] = 'pause:' .. scope
  of_scopes[#of_scopes + 1] = 'reason:' .. scope
end
local meta = read_meta(META, of_scopes)
local function field(name) return tonumber(meta[name] or 0) end
local boot, seq, floor, last, pause = meta.boot, field('seq'), field('floor'), field('last'), field('pause')
local scope_pause = {} -- of the model (0) and of each key
for i, scope in ipairs(scopes) do scope_pause[i - 1] = field('pause:' .. scope) end

-- The guard in force is the greatest that any worker asked for in the last 10 to 20 s, and what refusals taught (which fades).
local guard, before, since = field('guard'), field('guard_before'), field('guard_since')
if request.doubt == 'rules' then guard, before, since = 0, 0, now end -- what workers asked for was asked for other limits
if now - since > 10000000 then
  before = (now - since > 20000000) and 0 or guard
  guard, since = 0, now
end
guard = math.max(guard, request.guard_us)
local extra = field('extra') * math.exp((field('extra_at') - now) / 1e9)
local force = math.max(guard, before) + extra

-- Lost or regressed state: nobody knows what was granted, so wait until survivors have told and old slots are over.
-- A life that did not begin empty says so in its id. A server that took over, or came back with its files, may have missed
-- the latest grants, and who asks it first need not know of them.
local empty, server = not boot, meta.server or ''
if empty or request.doubt ~= '' then
  local info = redis.pcall('INFO', 'server') -- where it is not allowed, the sequence numbers must do
  server = type(info) == 'string' and info:match('run_id:(%w+)') or ''
end
local lost = empty or meta.server ~= server or (known_boot == boot and (seq < request.seq or request.doubt == 'stepped'))
local same_life = not (lost or stepped_back) -- else nobody knows where the server's windows begin on this clock

-- spacing: how far apart its calls are; apart: the same under the limits that other models share; light: for calls of one unit
local limits, paces, quotas, common, shared, of_key, spacing, apart, light = {}, {}, {}, {}, {}, {}, 1, 1, 1
for i = 1, key_count do of_key[i] = {} end
for i, key in ipairs(LIMITS) do
  local h = read_limit(key)
  if not h.window then return { 'unconfigured' } end
  local x = { key = key, index = i, owner = ARG.owners[i], window = tonumber(h.window), amount = tonumber(h.amount),
    column = tonumber(h.column), learned = string.find(key, ':learned:0', 1, true), quota = h.quota == '1',
    block = tonumber(h.block or 0), aligned = same_life and h.life == boot and tonumber(h.aligned or nil),
    blur = tonumber(h.blur or 0) + DRIFT * (now - tonumber(h.aligned_at or now)), force = force }
  if field('resumed') > tonumber(h.blocked_at or 0) then x.block = 0 end -- somebody said since then that calls may go on
  limits[i] = x
  local owned = x.owner > 0 and of_key[x.owner] or shared
  owned[#owned + 1] = x
  if x.owner == 0 then common[#common + 1] = x end
  if x.quota then
    quotas[#quotas + 1] = x
    x.width, x.added = x.window / 96, {} -- added: what this exchange changes, by bucket
    x.total, x.oldest, x.newest = tonumber(h.total or 0), tonumber(h.oldest or 0), tonumber(h.newest or 0)
    if x.oldest > 0 and quota.ends(x, x.oldest) <= now then quota.load(x) end
    x.earliest, x.spend = function(t, units) return math.max(t, quota.due(x, units)) end, quota.spend
  else
    paces[#paces + 1] = x
    x.tat, x.credit, x.turn, x.count = tonumber(h.tat or 0), tonumber(h.credit or 0), tonumber(h.turn or 0), tonumber(h.count or 0)
    x.charge, x.busy = tonumber(h.charge or 0), tonumber(h.busy or 0)
    x.taken, x.taken_from = tonumber(h.taken or 0), tonumber(h.taken_from or now)
    adapt.read(x, h.factor, h.mode)
    local usable = x.aligned and x.window - force - 2 * x.blur or 0
    if usable > x.window / 2 then
      x.usable, x.emission = usable, usable / (x.amount * x.factor)
    else
      local gain, slack = tonumber(h.gain), tonumber(h.slack)
      x.slack, x.heavy, x.strict = slack, x.column == 1 and gain > 0, x.column == 1 and gain == 1 and slack == 0
      x.span = x.window + gain * math.max(0, force - slack)
      x.emission = x.span / (x.amount * x.factor)
    end
    if tonumber(h.slow_until or 0) > now then x.emission = math.max(x.emission, tonumber(h.slow)) end
    x.latest = math.max(tonumber(h.latest or 0), lost and now or 0) -- it is unknown what started before the loss
    pace.refresh(x)
    if x.column == 1 and x.owner >= 0 then
      for j, calls in ipairs(request.taken) do
        if x.owner == 0 or x.owner == j then x.taken = x.taken + calls end
      end
    end
    pace.read_lists(x, h.holes, h.log, h.heavy_at, lost)
    x.earliest, x.spend = function(t, units) return pace.due(x, t, units) end, pace.spend
    local unit = x.emission / (x.owner > 0 and key_count or 1)
    local own = unit * (n > 0 and cost(x, 1) or 1)
    spacing = math.max(spacing, own)
    if x.owner >= 0 then apart, light = math.max(apart, own), math.max(light, unit) end
  end
end
local dearest = 0 -- what a call of others took of a pace lately: they book further ahead, and would never leave room
for _, x in ipairs(common) do
  if not x.quota then dearest = math.max(dearest, x.charge) end
end
-- Shorter than one emission, it would leave the limit unused where waiters do not come. Heavy calls book no further ahead: a
-- light one of another class that comes then is behind one of them, not behind two. Nor do calls of slow models: thousands
-- of them would book all that others want of the limits of all.
local H = math.max(horizon, 1.5 * light)

if lost or stepped_back then
  boot, seq = text(now) .. '/' .. me .. '/' .. request.seq .. (empty and '' or '/kept'), math.max(seq, request.seq)
  if lost then floor = math.max(floor, now + math.max(lead, math.min(2 * H + horizon + spacing, ARG.longest_cold_wait_us))) end
  redis.call('PUBLISH', ARG.channel, 'boot')
end
if known_boot ~= '' and known_boot ~= boot then -- a survivor of the former life brings what it still holds
  local latest = now + request.latest_us
  last = math.max(last, latest)
  for _, x in ipairs(paces) do
    pace.hear(x, latest, x.column == 1 and request.heaviest or n > 0 and cost(x, 1) or 1)
  end
end

for _, due in ipairs(request.settlements) do
  local from = due.since_us
  for _, x in ipairs(limits) do
    local dearer, unused = due.dearer[x.column], due.unused[x.column]
    if x.owner <= 0 or x.owner == due.key then
      if not x.quota then
        if x.column == 1 then unused = 0 end -- a moment that has passed is of no use to a pace
        if dearer ~= unused then pace.settle(x, dearer - unused, dearer > 0 and now or now + from) end
      else
        -- What was granted in a former life is not counted here. The guard covers the error of the worker's clock map.
        if unused > 0 and known_boot == boot then quota.give_back(x, now + from - force, unused) end
        if dearer > 0 then quota.spend(x, now, dearer) end
      end
    end
  end
end

local starts, keys_used, by, again = {}, {}, 0, now
local function fit(owned, t, k) -- the earliest time from t on that all these limits allow
  for _ = 1, 8 do
    local before_pass = t
    for _, x in ipairs(owned) do
      local at = x.earliest(t, cost(x, k))
      if at > t then t, by = at, x.index end
    end
    if t == before_pass then break end
  end
  return t
end

local paused_until, grid = 0, 0 -- grid: how far apart the limits of all calls keep two of them
for _, x in ipairs(common) do
  if not x.quota and #shared > #common then grid = math.max(grid, x.emission * (n > 0 and cost(x, 1) or 1)) end
end
local function next_start(k) -- when, with which key, and when the limits of all calls alone would have allowed it
  by = 0
  local free = fit(common, math.max(now + lead, floor, pause), k)
  local from = fit(shared, math.max(free, scope_pause[0]), k)
  if from > free and grid > 0 then -- what it leaves free between shall be of use to others
    from = fit(shared, free + math.ceil((from - free) / grid - 0.001) * grid, k)
  end
  local best, best_key, best_by, shared_by = nil, nil, 0, by
  paused_until = math.max(pause, scope_pause[0])
  for offset = 0, key_count - 1 do
    local j = (seq + k + offset) % key_count + 1
    if allowed[j] > 0 or k > n then -- beyond n: when it is worth asking again
      by = 0
      local due = fit(of_key[j], math.max(from, scope_pause[j]), k)
      local s = due > from and fit(shared, due, k) or due
      paused_until = math.max(paused_until, scope_pause[j])
      if not best or s < best then best, best_key, best_by = s, j, by > 0 and by or due == from and shared_by or 0 end
    end
  end
  by = best_by
  return best, best_key, free
end

local share, v = 1, field(v_field)
local function grant(s, key, free, most, furthest) -- up to `most` calls; returns the next start and when it is free for others
  for k = 1, most do
    if not s or (k > 1 and s - now > furthest) then break end
    starts[k], keys_used[k] = s, key
    allowed[key] = allowed[key] - 1
    last = math.max(last, s)
    local dominant = 0
    for _, x in ipairs(shared) do
      dominant = math.max(dominant, x.spend(x, s, cost(x, k), x.owner == 0 and free) or 0)
    end
    for _, x in ipairs(of_key[key]) do x.spend(x, s, cost(x, k)) end
    v = v + math.max(dominant, spacing) / share
    s, key, free = next_start(k + 1)
  end
  return s, free
end

-- The same, many times faster, for calls that are alike under limits that only space them: the ordinary case.
local all_alike = alike and key_count == 1 and #quotas == 0 and #shared == #common
for _, x in ipairs(paces) do
  if x.column ~= 1 or x.usable or x.credit > 0 or #x.holes > 0 or x.log then all_alike = false end
end
local function grant_alike(s, most, furthest)
  local from, charges, dominant, count = math.max(now + lead, floor, pause, scope_pause[1]), {}, spacing, #paces
  for i = 1, count do
    charges[i] = math.ceil(paces[i].emission * 4) / 4
    dominant, from = math.max(dominant, charges[i]), math.max(from, paces[i].block)
  end
  local k = 0
  repeat
    k = k + 1
    starts[k], keys_used[k] = s, 1
    local nearest = from
    by = 0
    for i = 1, count do
      local x = paces[i]
      local tat = (x.tat > s and x.tat or s) + charges[i]
      x.tat, x.latest = tat, s
      if tat > nearest then nearest, by = tat, x.index end
    end
    s = nearest
  until k >= most or s - now > furthest
  for i = 1, count do paces[i].charge = math.max(paces[i].charge, charges[i]) end
  last, v = math.max(last, starts[k]), v + k * dominant / share
  return s
end

local upcoming = -1
if n > 0 then
  redis.call('ZADD', CLASSES, now, class .. '|' .. ARG.weight)
  local unused_since = now - math.max(2000000, 4 * spacing)
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', CLASSES, '-inf', unused_since, 'LIMIT', 0, MOST_GONE)) do
    redis.call('HDEL', META, 'v:' .. string.match(gone, '^(.*)|'))
    redis.call('ZREM', CLASSES, gone)
  end
  redis.call('PEXPIRE', CLASSES, MODEL_KEPT_MS)
  if redis.call('ZCARD', CLASSES) > 1 then
    local sum = 0
    for _, member in ipairs(redis.call('ZRANGE', CLASSES, 0, -1)) do sum = sum + tonumber(string.match(member, '|([^|]*)$')) end
    share = tonumber(ARG.weight) / sum
  end
  redis.call('ZADD', WORKERS, now, me)
  redis.call('PEXPIRE', WORKERS, CLASS_KEPT_MS)
  redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', now - 2000000)
  local active = redis.call('ZCARD', WORKERS)
  local fair = math.min(512, math.max(1, math.floor(horizon * share / (spacing * active)))) -- calls in one turn of one worker
  -- One line for all models of a class: they wait for each other only where limits of all calls space them.
  local is_common = apart > 1
  local turn = fair * (is_common and apart or spacing)
  for _ = 1, 3 do -- waiters that did not come at the time promised to them are dead or have nothing to do
    local head = redis.call('ZRANGE', QUEUE, 0, 0)[1]
    if not head or head == me then break end
    local promise = 'promise:' .. class .. ':' .. head
    if now <= tonumber(redis.call('HGET', META, promise) or 0) + 250000 then break end
    redis.call('ZREM', QUEUE, head)
    redis.call('HDEL', META, promise)
  end
  local rank = redis.call('ZRANK', QUEUE, me) or redis.call('ZCARD', QUEUE)
  local model = string.match(me, '|(.+)$')
  if model and not is_common and rank > 0 then
    local older = 0
    for _, other in ipairs(redis.call('ZRANGE', QUEUE, 0, rank - 1)) do
      if string.match(other, '|(.+)$') == model then older = older + 1 end
    end
    rank = older
  end

  v = math.max(v, now - 50000)
  local green_at = v + rank * turn / share - 100000 -- when older waiters have had their turns and it is below its share
  local function reach() -- how far ahead it may book: alone, with less than its share, with more
    if share > 0.999 then return H end
    return green_at <= now and math.max(2 * H, FAR * dearest) or math.max(NEAR_US, light)
  end
  local base = reach()
  -- Older waiters book first: keep their turns free. The floor keeps it work conserving when they do not come.
  local ahead = math.max(base - rank * turn, lead + 10000)

  local s, key, free = next_start(1)
  if not s then
    again = now + LOOK_US -- no key may be used: a permit brings it back sooner
  elseif s - now > ahead then
    local wait = rank * turn
    -- Heavy calls: who is next in line comes in time for the start of the one before, who may be dead.
    if rank > 0 and spacing > light then wait = math.min(wait, wait - turn + base - lead - 5000) end
    again = math.max(now + 1000, s - base + wait)
    if share < 0.999 and base < 2 * H then
      again = math.max(now + 1000, math.min(again, math.max(green_at, s - 2 * H + rank * turn)))
    end
    if paused_until > now then again = math.min(again, now + LOOK_US) end
    redis.call('ZADD', QUEUE, 'NX', now, me)
    redis.call('PEXPIRE', QUEUE, 3600000)
    redis.call('HSET', META, 'promise:' .. class .. ':' .. me, text(again))
  else
    -- A turn is granted whole; cutting it at the horizon would favour small askers.
    local most, furthest = math.min(n, fair), ahead + horizon
    if all_alike then
      s = grant_alike(s, math.min(most, allowed[1]), furthest)
      free = s
    else
      s, free = grant(s, key, free, most, furthest)
    end
    local held = by > 0 and limits[by]
    if held and held.mode and held.mode ~= '' and adapt.raise(held) then redis.call('PUBLISH', ARG.channel, 'learned') end
    if redis.call('ZREM', QUEUE, me) == 1 then redis.call('HDEL', META, 'promise:' .. class .. ':' .. me) end
    green_at = v + (active - 1) * turn / share - 100000
    base = reach()
    local others = s and s > free + 1 and 0 or math.min((active - 1) * turn, H / 2) -- none compete for what its model allows
    again = math.max(now, (s or now) - base + others)
    if share < 0.999 and base < 2 * H then again = math.max(now, math.min(again, green_at)) end
  end
  -- Refunds and new numbers may free a quota hours sooner than it ages.
  if by > 0 and limits[by].quota then again = math.min(again, now + LOOK_US) end
  upcoming = s and math.ceil(s - now) or -1
end

if request.leaves and redis.call('ZREM', QUEUE, me) == 1 then
  redis.call('HDEL', META, 'promise:' .. class .. ':' .. me)
end

seq = seq + 1
redis.call('PEXPIRE', META, KEPT_MS + math.ceil(math.max(0, pause - now) / 1000))
redis.call('HSET', META, 'format', FORMAT, 'now', text(now), 'skew', text(skew), 'boot', boot, 'seq', seq, 'floor', text(floor),
  'last', text(last), 'guard', text(guard), 'guard_before', text(before), 'guard_since', text(since), 'server', server)
if n > 0 then redis.call('HSET', META, v_field, text(v)) end
for _, x in ipairs(paces) do
  pace.write(x)
  redis.call('PEXPIRE', x.key, math.ceil(math.max(x.owner == -1 and MODEL_KEPT_MS or KEPT_MS, x.window / 500)))
end
for _, x in ipairs(quotas) do quota.write(x) end
local pauses = {}
for i, scope in ipairs(scopes) do
  pauses[i] = { math.ceil(math.max(0, scope_pause[i - 1] - now)), meta['reason:' .. scope] or '' }
end
for k, s in ipairs(starts) do starts[k] = math.ceil(s - now) end
return answer({ now_us = now, boot = boot, seq = seq, again_us = math.ceil(again - now), by = by,
  pause_us = math.ceil(math.max(0, pause - now)), pause_reason = meta.reason or '', guard_us = math.ceil(force),
  starts_us = starts, keys = keys_used, scopes = pauses, upcoming_us = upcoming })
