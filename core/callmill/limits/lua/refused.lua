-- Learn from an API's refusal of a call that our limits allowed.
--
-- KEYS  META   PERMITS: meta hash of the permits   IN_USE: hash worker -> permits in use
--       LIMITS: one hash per limit that held for it
-- ARG   worker   channel   started_us: since the call started   refused_us: since it was refused
--       in_flight: other calls of this worker that were in flight then
--       permits that this worker held, 0: calls in flight are not limited
--       taken: calls of this worker that the API took and that it has not told of yet   taken_per_s: by the API lately
--       what there was too much of: 'rate', 'concurrency' or '' where nobody says
--       begins: place in LIMITS of a pace that nobody wrote down and that begins now, 0: none   fastest: the most that its
--         factor may be
--       in_a_row: how many waves of refusals came, with no call that the API took in between
--       asked_us: how long the API asked to wait, 0: it did not say
--       wanted: whether other calls waited   crowded: whether they waited for permits
-- Returns 0: it belongs to one that was counted already; 1: something was changed; 2: and people do not know of it yet.
--
-- Invariants: refusals of calls that started before the latest change count as one with it, however many they are; nothing
-- changes more often than once a second. Nobody who refuses says which limit it was. Calls in flight cannot be the reason
-- where there were none; the pace is not where calls waited for others to end rather than for their time. Where both may
-- be, both come down to what the API took. The first refusal in a while of limits that are written down widens the guard by
-- half (calls may reach the server further apart from their plan than we measured), but not on a server that forgives a
-- burst, where that would cost far more than an accident is worth; the next slows down the pace with the least to spare, and
-- so does one where the wider guard would cost more than a tenth of that pace.
local CALM_US, LEAST_GUARD_US, MOST_GUARD_US, SINCE_US, INNOCENT, LONGEST_WINDOW_US, AHEAD, UNSEEN_US =
  60000000, 1000, 10000000, 1000000, 0.8, 60000000, 1.4, 30000
local FEW, GUESS_PER_S = 5, 10 -- from fewer calls nothing can be told: then as "auto" begins
local started, at = now - ARG.started_us, now - ARG.refused_us
local mine, kind, begins, in_a_row, untold = ARG.in_flight, ARG.what, ARG.begins, ARG.in_a_row, ARG.taken
local asked = math.min(ARG.asked_us, LONGEST_WINDOW_US)
local meta = read_meta(META)
local function field(name) return tonumber(meta[name] or 0) end
local before = field('epoch')

local tightest, forgiving
for i, key in ipairs(LIMITS) do
  local h = read_limit(key)
  forgiving = forgiving or tonumber(h.slack or 0) > 0
  if h.window and h.quota ~= '1' then
    local x = { key = key, tat = tonumber(h.tat or 0), requests = h.column == '1', window = tonumber(h.window),
      gain = tonumber(h.gain), slack = tonumber(h.slack), amount = tonumber(h.amount), begins = i == begins }
    adapt.read(x, h.factor, h.mode)
    local searching = x.mode == 'start' or x.most and x.most > 1 or x.begins
    x.rank = (searching and 1e18 or 0) + (x.requests and 1e17 or 0) + x.tat
    if not tightest or x.rank > tightest.rank then tightest = x end
  end
end
if started <= before then return 0 end -- it belongs to one that was counted
local begins_now = tightest and tightest.begins and tightest.mode == ''
if now - before < SINCE_US and not begins_now and not (tightest and tightest.mode == 'start') then return 0 end
redis.call('HSET', META, 'epoch', text(now), 'calm', text(now))

local others, in_use = mine, redis.call('HGETALL', IN_USE)
for i = 1, #in_use, 2 do
  if in_use[i] ~= ARG.worker then others = others + tonumber(in_use[i + 1]) end
end
local crowd, again, blamed = in_flight.read(PERMITS, now, META), now - field('calm') < CALM_US, false
if ARG.permits > 0 and crowd.most > 0 then
  blamed = kind == 'concurrency' or kind == '' and ARG.crowded and mine > 0 and crowd.count < crowd.most
  if blamed then in_flight.lower(crowd, others) end
elseif mine > 0 and (kind == 'concurrency' or kind == '' and again and begins == 0) then
  crowd.most = others + 1
  in_flight.lower(crowd, others)
  redis.call('HSET', META, 'learned_in_flight', 1)
  redis.call('PUBLISH', ARG.channel, 'learned')
end

local function factor(x, per_s) return per_s * x.window / (x.amount * 1e6) end
local function begin_row(x, row_at)
  taken.begin_row(x, row_at, in_a_row, asked, crowd.minute + untold, crowd.minute_from)
end

local function begin(x) -- a pace that nobody wrote down
  x.taken, x.taken_from = crowd.taken + untold, crowd.taken_from
  local least = x.taken < FEW and GUESS_PER_S or 1
  local lately = math.max(least, ARG.taken_per_s, in_flight.taken_per_s(crowd)) * (blamed and 2 or 1)
  -- What was counted last may be older than the row, whose first waves may not have been told: each waits twice as long.
  local longest_us = 2 ^ in_a_row * 1000000 + in_a_row * asked
  begin_row(x, in_a_row > 1 and at - before < longest_us and before or at)
  local again_at, windowed, trust, _, period = at + asked + UNSEEN_US, 0, 0 -- what the API takes if it counts windows
  if asked == 0 then again_at = x.row_at + AHEAD * (at - x.row_at) end
  if asked > 0 or in_a_row > 1 then windowed, trust, _, period = taken.in_windows(x, again_at) end
  taken.forget(x)
  local slower = windowed > 0 and windowed < lately
  local per_s = slower and lately * (windowed / lately) ^ trust or lately
  local told = slower and asked > 0 and trust == 1 and ARG.wanted -- else nobody wanted to make more calls
  adapt.begin(x, factor(x, per_s), factor(x, lately), ARG.fastest, told and period or 0)
  redis.call('HSET', META, 'learned_pace', 1)
  redis.call('PUBLISH', ARG.channel, 'learned')
end

local function bound(x) -- the API took nothing since the last refusal
  if not taken.prolong_row(x, in_a_row, asked) then begin_row(x, at) end
  local per_s, trust, highest, period = taken.in_windows(x, x.row_at + AHEAD * (at - x.row_at))
  local bound = per_s > 0 and x.row_factor * math.min(1, factor(x, per_s) / x.row_factor) ^ trust or x.factor
  adapt.bound(x, bound, x.row_factor, factor(x, highest), period, x.row_until)
end

local function lower(x)
  local delivered, doubt
  if x.requests then
    delivered, doubt = taken.since_refusal(x, asked, x.mode == 'start')
    delivered = delivered and factor(x, delivered)
    begin_row(x, at)
    if x.mode == 'start' then taken.halve(x) else taken.forget(x) end
  end
  if delivered and x.good and x.good > delivered then delivered = delivered * (x.good / delivered) ^ doubt end
  if blamed and delivered and delivered < INNOCENT * x.factor then return end
  adapt.lower(x, delivered, doubt or 1)
  if x.begins and x.tat > now then -- starts that were granted at the former pace are void
    redis.call('HSET', x.key, 'tat', text(math.min(x.tat, now + x.window / (x.amount * x.factor))))
    redis.call('PUBLISH', ARG.channel, 'slower')
  end
end

local function news(x) return (crowd.is_new or x and x.is_new) and 2 or 1 end
if not tightest or kind == 'concurrency' then return news() end
local extra = field('extra') * math.exp((field('extra_at') - now) / 1e9)
local guard = math.max(field('guard'), field('guard_before'), LEAST_GUARD_US) + extra
local function affordable(x) return forgiving or x.gain * math.max(0, 1.5 * guard - x.slack) <= x.window / 10 end
taken.read(tightest, at, untold, others)
if begins_now then
  if blamed and not again then return news() end -- if it was not that, the next refusal comes soon
  begin(tightest)
elseif blamed and tightest.mode ~= 'start' then
  -- not the pace
elseif tightest.mode ~= '' or again or not affordable(tightest) then
  if in_a_row > 1 then bound(tightest) else lower(tightest) end
elseif not forgiving and guard <= MOST_GUARD_US then
  redis.call('HSET', META, 'extra', text(extra + guard / 2), 'extra_at', text(now))
  taken.forget(tightest)
end
taken.write(tightest)
return news(tightest)
