// An API with express-rate-limit in front of it: node server.js '{"port": 1, "log": "FILE", "limiter": {...}}'.
// Writes one line per answer: Unix time of its end, seconds that it took, status, path.
'use strict'

const fs = require('node:fs')
const express = require('express')
const { rateLimit } = require('express-rate-limit')

const { port, log, limiter } = JSON.parse(process.argv[2])
const file = fs.openSync(log, 'a')
const app = express()

app.use((request, response, next) => {
  const began = process.hrtime.bigint()
  response.on('finish', () => {
    const took = Number(process.hrtime.bigint() - began) / 1e9
    fs.writeSync(file, `${Date.now() / 1000} ${took} ${response.statusCode} ${request.path}\n`)
  })
  next()
})
app.use(rateLimit(limiter))
app.use((_request, response) => response.json({ ok: true }))
app.listen(port, '127.0.0.1')
