-- Learn from an API's refusal of a call that our limits allowed.
--
-- KEYS  1 meta hash   2 meta hash of the permits   3.. one hash per limit that held for the call
-- ARGV  1 us since the call started   2 us since it was refused   3 other calls of all workers that were in flight then
--       4 permits that this worker held, 0: calls in flight are not limited   5 calls a second that the API took lately
--       6 what there was too much of: 'rate', 'concurrency' or '' where nobody says   7 which limit begins now (from 1), of a
--         pace that nobody wrote down; 0: none   8 the most that its factor may be   9 channel
--      10 how many waves of refusals came in a row, with no call that the API took in between   11 calls of this worker that
--         the API took and that it has not told of yet   12 '1': no other call could start for lack of permits
--      13 us that the API asked to wait, 0: it did not say
-- Returns 1: something was changed; 0: the refusal belongs to one that was counted already.
--
-- Invariants: refusals of calls that started before the latest change count as one with it, however many they are; nothing
-- changes more often than once a second. Nobody who refuses says which limit it was. Calls in flight cannot be the reason
-- where there were none; the pace is not where calls waited for others to end rather than for their time. Where both may
-- be, both come down to what the API took. The first refusal in a while of limits that are written down widens the guard by
-- half (calls may reach the server further apart from their plan than we measured), but not on a server that forgives a
-- burst, where that would cost far more than an accident is worth; the next slows down the pace with the least to spare, and
-- so does one where the wider guard would cost more than a tenth of that pace.
local CALM_US, LEAST_GUARD_US, MOST_GUARD_US, SINCE_US, INNOCENT, LONGEST_WINDOW_US, ENOUGH =
  60000000, 1000, 10000000, 1000000, 0.8, 60000000, 10
local started, at = now - tonumber(ARGV[1]), now - tonumber(ARGV[2])
local others, held, kind, begins = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[6], tonumber(ARGV[7])
local in_a_row, just_taken, crowded = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12] == '1'
local asked = math.min(tonumber(ARGV[13]), LONGEST_WINDOW_US)
local meta = redis.call('HMGET', M, 'epoch', 'guard', 'guard_before', 'extra', 'extra_at', 'calm')
local function field(i) return tonumber(meta[i] or 0) end
local tightest, forgiving
for i = 3, #KEYS do
  local h = redis.call('HMGET', KEYS[i], 'tat', 'column', 'quota', 'factor', 'mode', 'window', 'gain', 'slack', 'amount', 'taken',
    'taken_from')
  forgiving = forgiving or tonumber(h[8] or 0) > 0
  if h[6] and h[3] ~= '1' then
    local x = { key = KEYS[i], tat = tonumber(h[1] or 0), requests = h[2] == '1', window = tonumber(h[6]),
      gain = tonumber(h[7]), slack = tonumber(h[8]), amount = tonumber(h[9]), begins = i - 2 == begins }
    adapt.read(x, h[4], h[5])
    x.taken, x.taken_from = tonumber(h[10] or 0) + just_taken, tonumber(h[11] or 0)
    local searching = x.mode == 'start' or x.most and x.most > 1 or x.begins
    x.rank = (searching and 1e18 or 0) + (x.requests and 1e17 or 0) + x.tat
    if not tightest or x.rank > tightest.rank then tightest = x end
  end
end
if started <= field(1) then return 0 end
local begins_now = tightest and tightest.begins and tightest.mode == ''
if now - field(1) < SINCE_US and not begins_now and not (tightest and tightest.mode == 'start') then return 0 end
redis.call('HSET', M, 'epoch', text(now), 'calm', text(now))

local crowd, again, blamed = in_flight.read(KEYS[2], now, M), now - field(6) < CALM_US, false
if held > 0 and crowd.most > 0 then
  blamed = kind == 'concurrency' or kind == '' and crowded and others > 0 and crowd.count < crowd.most
  if blamed then in_flight.lower(crowd, others) end
elseif others > 0 and (kind == 'concurrency' or kind == '' and again and begins == 0) then
  crowd.most = others + 1
  in_flight.lower(crowd, others)
  redis.call('HSET', M, 'learned_in_flight', 1)
  redis.call('PUBLISH', ARGV[9], 'learned')
end

local function lower(x)
  local delivered
  if not x.requests or x.taken == 0 then
    delivered = nil -- unknown
  elseif in_a_row > 1 then
    delivered = 0
    -- It takes calls again somewhere between now and twice as late: of the wait, so much is surely none of the API's.
    redis.call('HSET', x.key, 'taken', x.taken, 'taken_from', text(x.taken_from + (at - field(1)) * 2 / 3))
  elseif x.taken_from > 0 and at > x.taken_from then
    delivered = x.taken * x.window / (x.amount * (at + asked - x.taken_from))
    if x.mode == 'start' then -- what was longer ago counts for half
      redis.call('HSET', x.key, 'taken', x.taken / 2, 'taken_from', text((at + x.taken_from) / 2))
    else
      if x.taken < ENOUGH then delivered = nil end
      redis.call('HSET', x.key, 'taken', 0, 'taken_from', text(at))
    end
  end
  if blamed and delivered and delivered > 0 and delivered < INNOCENT * x.factor then return end
  adapt.lower(x, delivered)
  if x.begins and x.tat > now then -- starts that were granted at the former pace are void
    redis.call('HSET', x.key, 'tat', text(math.min(x.tat, now + x.window / (x.amount * x.factor))))
    redis.call('PUBLISH', ARGV[9], 'slower')
  end
end
local extra = field(4) * math.exp((field(5) - now) / 1e9)
local guard = math.max(field(2), field(3), LEAST_GUARD_US) + extra
local function affordable(x) return forgiving or x.gain * math.max(0, 1.5 * guard - x.slack) <= x.window / 10 end
if begins_now and blamed and not again then
  return 1 -- if it was not that, the next refusal comes soon
elseif begins_now and kind ~= 'concurrency' then
  local lately = math.max(1, tonumber(ARGV[5]), in_flight.taken_per_s(crowd)) * (blamed and 2 or 1)
  redis.call('HSET', tightest.key, 'taken', lately / 2, 'taken_from', text(at - 1000000))
  if asked > 0 then lately = math.min(lately, in_flight.taken(crowd, just_taken) * 1e6 / asked) end
  adapt.begin(tightest, lately * tightest.window / (tightest.amount * 1e6), tonumber(ARGV[8]), asked > 0 and adapt.SLOW or adapt.FAST)
  redis.call('HSET', M, 'learned_pace', 1)
  redis.call('PUBLISH', ARGV[9], 'learned')
elseif kind ~= 'concurrency' and tightest and not (blamed and tightest.mode ~= 'start') then
  if tightest.mode ~= '' or again or not affordable(tightest) then
    lower(tightest)
  elseif not forgiving and guard <= MOST_GUARD_US then
    redis.call('HSET', M, 'extra', text(extra + guard / 2), 'extra_at', text(now))
    redis.call('HSET', tightest.key, 'taken', 0, 'taken_from', text(at))
  end
end
return 1
