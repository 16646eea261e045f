//! Rows through a stage of the user's own: what is written there, what stays, and what is wrong with it.

use mirror_operator::{
    api::snowflake::SnowflakeTable,
    destination::{
        Cell, Counts, Error, RowChange,
        snowflake::{ExternalStage, Peer, check, quote::ident},
    },
    postgres::{Lsn, connect::SecretFile},
};

use super::people;
use crate::{
    fixture::{Fixture, boundary, from_loaded, load, made, open, plan, whole},
    on_snowflake::{OnSnowflake, is_live},
    support,
};

/// A key of the stand-in's storage (tests/testbed/snowflake_storage.py).
fn keys(id: &str, secret: &str) -> SecretFile {
    support::secret(&format!("[default]\naws_access_key_id = AKIATESTBED{id}\naws_secret_access_key = {secret}\n"))
}

/// A place whose Peer names a folder of a stage; `None` at a real account, which has no such storage.
async fn place() -> Option<OnSnowflake> {
    if is_live() {
        return None;
    }
    let mut place = OnSnowflake::new().await.with(SnowflakeTable::default());
    let folder = format!("s3://files/{}", place.to.schema);
    place.run(&format!("CREATE STAGE IF NOT EXISTS public.\"ROWS\" URL = '{folder}/'")).await;
    place.to.stage = Some(Box::new(ExternalStage {
        database: place.to.at.database.clone(),
        schema: place.to.schema.clone(),
        name: "ROWS".into(),
        url: format!("{folder}/mirrors"),
        region: Some("us-east-1".into()),
        endpoint: Some(format!("http://{}:{}", place.to.at.host, place.to.at.port + 1)),
        credentials: Some(keys("WRITER0000", "testbed-secret")),
    }));
    Some(place)
}

/// The files in the stage, without its URL.
async fn files(place: &OnSnowflake) -> Vec<String> {
    let folder = format!("s3://files/{}/mirrors/", place.to.schema);
    let rows = place.rows("LIST @public.\"ROWS\"").await;
    rows.iter().map(|row| row.split('|').next().unwrap().strip_prefix(&folder).unwrap().to_string()).collect()
}

/// Lines that no compression makes much smaller: more than two parts of a multipart upload.
fn many() -> Vec<String> {
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        char::from(b'!' + ((state >> 33) % 90) as u8)
    };
    let mut text = || (0..1_000_000).map(|_| noise()).filter(|c| *c != '\\').collect::<String>();
    (0..24).map(|id| format!("{id}\tlarge\t{}", text())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_through_a_stage_of_ones_own_and_nothing_is_left_in_it() {
    let Some(place) = place().await else { return };
    let at = open(&place.brief(1)).await;
    assert_eq!(at.preflight(&[people(&place)]).await.unwrap(), vec![]);
    assert_eq!(files(&place).await, [""; 0], "the check leaves nothing");
    let lines = many();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    whole(&*at, &[(people(&place), &lines)]).await;
    assert_eq!(files(&place).await, [""; 0]);
    let lengths: Vec<String> = lines.iter().map(|line| line.rsplit_once('\t').unwrap().1.len().to_string()).collect();
    assert_eq!(place.rows("SELECT LENGTH(note) FROM public.people ORDER BY id").await, lengths);
    assert_eq!(place.rows("SELECT note FROM public.people WHERE id = 23").await, [lines[23].rsplit_once('\t').unwrap().1]);

    let mut applier = at.applier().await.unwrap();
    let row = vec![Cell::Text("0".to_string().into()), Cell::Text("small".to_string().into()), Cell::Null];
    let change = vec![RowChange::Upsert { row, deleted: false }];
    applier.write(&people(&place), change, vec![made(1500)], Counts::default()).await.unwrap();
    applier.commit(Lsn(2000)).await.unwrap();
    assert_eq!(place.rows("SELECT name, note FROM public.people WHERE id = 0").await, ["small|∅"]);
    assert_eq!(files(&place).await.len(), 1, "of the batch: they go every few batches, and with the next applier");
    drop(applier);
    at.applier().await.unwrap();
    assert_eq!(files(&place).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_repeated_after_a_lost_reply_is_in_the_table_once_and_its_files_go() {
    let Some(place) = place().await else { return };
    let (schema, mut number) = (people(&place), 0);
    // Each request of the load loses its reply once, in an epoch of its own.
    loop {
        number += 1;
        let at = open(&place.brief(number)).await;
        at.begin().await.unwrap();
        at.create_shadows(boundary(1), std::slice::from_ref(&schema), &plan(&[1])).await.unwrap();
        let (brief, has_cut) = place.through_cut(place.brief(number), number).await;
        let outcome = load(&*open(&brief).await, &schema, 0, &["1\tone\t\\N", "2\ttwo\t\\N"]).await;
        assert!(matches!(outcome, Ok(_) | Err(Error::Transient(_))), "request {number}: {outcome:?}");
        load(&*at, &schema, 0, &["1\tone\t\\N", "2\ttwo\t\\N"]).await.unwrap();
        assert_eq!(place.count(&format!("people_resync_e{number}g1")).await, 2, "request {number}");
        at.abandon().await.unwrap();
        assert_eq!(files(&place).await, [""; 0], "request {number}");
        if !has_cut() {
            break;
        }
        // The epoch that was given up has closed the fence with the next number.
        assert!(outcome.is_err() || number > 5, "request {number}");
    }
    assert!(number > 5, "{number} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_one_mirror_go_with_it_and_those_of_another_stay() {
    let Some(place) = place().await else { return };
    let other = place.of_another_mirror();
    for (place, name) in [(&place, "people"), (&other, "others")] {
        let at = open(&place.brief(1)).await;
        let mut schema = people(place);
        schema.destination.name = name.to_uppercase();
        whole(&*at, &[(schema.clone(), &["1\tone\t\\N"])]).await;
        let mut applier = at.applier().await.unwrap();
        applier
            .write(
                &schema,
                vec![RowChange::Delete { key: vec![Cell::Text("1".to_string().into()), Cell::Null, Cell::Null] }],
                vec![made(1500)],
                Counts::default(),
            )
            .await
            .unwrap();
    }
    assert_eq!(files(&place).await.len(), 2);
    open(&place.brief(1)).await.forget(true).await.unwrap();
    let left = files(&other).await;
    assert!(left.len() == 1 && left[0].starts_with(other.ledger().trim_start_matches("public.").trim_matches('"')), "{left:?}");
    open(&other.brief(1)).await.forget(true).await.unwrap();
    assert_eq!(files(&other).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_whose_credentials_are_taken_away_goes_on_when_they_are_back() {
    let Some(mut place) = place().await else { return };
    let (at, schema) = (open(&place.brief(1)).await, people(&place));
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), std::slice::from_ref(&schema), &plan(&[1])).await.unwrap();
    place.to.stage.as_mut().unwrap().credentials = Some(keys("WRITER0000", "rotated"));
    let refused = load(&*open(&place.brief(1)).await, &schema, 0, &["1\tone\t\\N"]).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Transient(why) if why.contains("credentials in Secret \"test\"") && !why.contains("rotated")),
        "{refused:?}"
    );
    load(&*at, &schema, 0, &["1\tone\t\\N"]).await.unwrap();
    from_loaded(&*at).await.unwrap();
    assert_eq!(place.read("people", &["id"]).await, ["1|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_cannot_be_used_is_refused_with_its_cure() {
    let Some(place) = place().await else { return };
    place.run("CREATE STAGE IF NOT EXISTS public.\"INTERNAL\"").await;
    place.run("CREATE STAGE IF NOT EXISTS public.\"GONE\" URL = 's3://gone/a/'").await;
    place.run("CREATE STAGE IF NOT EXISTS public.\"UNREAD\" URL = 's3://unread/'").await;
    let with = |change: &dyn Fn(&mut ExternalStage)| {
        let mut to = Peer { patience_millis: 0, ..place.to.clone() };
        change(to.stage.as_mut().unwrap());
        to
    };
    let at = |name: &'static str, url: &'static str| move |stage: &mut ExternalStage| (stage.name, stage.url) = (name.into(), url.into());
    type Change = Box<dyn Fn(&mut ExternalStage)>;
    let table: [(Change, &str, &str); 13] = [
        (Box::new(|stage| stage.name = "MISSING".into()), "StageMissing", "GRANT USAGE ON STAGE"),
        (Box::new(at("INTERNAL", "s3://files/a")), "StageMismatch", "is an internal stage"),
        (Box::new(|stage| stage.url = "s3://files/elsewhere".into()), "StageMismatch", "does not cover"),
        (Box::new(at("GONE", "s3://gone/a")), "StageUnwritable", "no such bucket"),
        (Box::new(at("UNREAD", "s3://unread/a")), "StageUnreadable", "storage integration"),
        (Box::new(|stage| stage.credentials = Some(keys("WRITER0000", "wrong"))), "StageUnwritable", "credentials are not taken"),
        (Box::new(|stage| stage.credentials = Some(keys("NOBODY0000", "testbed-secret"))), "StageUnwritable", "credentials are not taken"),
        (Box::new(|stage| stage.credentials = Some(keys("KEEPER0000", "testbed-secret"))), "StageUnwritable", "cannot delete"),
        (Box::new(|stage| stage.credentials = Some(keys("BLIND00000", "testbed-secret"))), "StageUnwritable", "cannot list s3://files/"),
        (Box::new(|stage| stage.credentials = Some(keys("BLIND00000", "testbed-secret"))), "StageUnwritable", "credentials are not taken"),
        (Box::new(|stage| stage.credentials = Some(support::secret("{}"))), "CredentialsInvalid", "has no credentials"),
        (Box::new(|stage| stage.credentials.as_mut().unwrap().path = "/missing".into()), "SecretMissing", "does not exist"),
        (Box::new(|stage| stage.endpoint = Some("http://127.0.0.1:1".into())), "StageUnwritable", "cannot be reached"),
    ];
    for (change, reason, words) in table {
        let report = check(&with(&*change)).await;
        let [problem] = &report.problems[..] else { panic!("{reason}: {report:?}") };
        assert!(problem.reason == reason && problem.message.contains(words), "{reason}, {words:?}: {problem:?}");
        assert!(!problem.message.contains("testbed-secret") && !problem.message.contains("AKIA"), "{problem:?}");
    }
    let whole = format!("{}.{}", ident(&place.to.at.database), ident(&place.to.schema));
    assert!(check(&with(&|stage| stage.name = "MISSING".into())).await.problems[0].message.contains(&whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_leads_elsewhere_by_now_stops_the_load_and_not_the_end_of_a_mirror() {
    let Some(mut place) = place().await else { return };
    let (at, schema) = (open(&place.brief(1)).await, people(&place));
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), std::slice::from_ref(&schema), &plan(&[1])).await.unwrap();
    place.run("DROP STAGE IF EXISTS public.\"ROWS\"").await;
    place.run("CREATE STAGE IF NOT EXISTS public.\"ROWS\" URL = 's3://unread/'").await;
    let refused = load(&*at, &schema, 0, &["1\tone\t\\N"]).await.unwrap_err();
    assert!(matches!(&refused, Error::Permanent(failure) if failure.reason == "StageMismatch"), "{refused:?}");
    place.run("DROP STAGE IF EXISTS public.\"ROWS\"").await;
    at.abandon().await.unwrap();
    place.to.stage.as_mut().unwrap().url = "s3://gone/a".into();
    open(&place.brief(1)).await.forget(true).await.unwrap();
    assert!(place.tables().await.is_empty());
    place.forget_ledger().await;
}
